"""views.py and policies.py against torchvision's functions, one image at a time, in the official order."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms as T
from torchvision.transforms import functional as F

from ssl_lessons import views as v

ONE = 1 / 255  # one step of an 8-bit image
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
EVERYTHING = replace(
    v.BYOL_T, name="everything", jitter=(0.8, 0.8, 0.8, 0.5), blur_p=0.6, solarize_p=0.5, grey_p=0.3
)


pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photographs(count, height, width, seed=0):
    """Smooth noise with saturated patches, greys, blacks and whites: hard for every operation."""
    coarse = torch.rand(count, 3, 5, 7, generator=seeded(seed))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") * 1.4 - 0.2
    images += 0.1 * torch.randn(images.shape, generator=seeded(seed + 1))
    images[:, :, : height // 4] = images[:, :, : height // 4].round()
    images[:, :, :, : width // 5] = images[:, :1, :, : width // 5]
    return (images.clamp(0, 1) * 255).round().byte()


def stored(images):
    """The same pixels as an ImageStore holds them: a view of memory laid out (B, H, 3, W)."""
    return images.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)


def step(change, views, draws):
    """One of the steps that work in place, on a copy."""
    return change(views.clone(), draws)


def colour_oracle(x, draws, k):
    if draws.policy.grey_first and draws.grey[k]:
        x = F.rgb_to_grayscale(x, 3)
    if draws.jitter[k]:
        for operation in draws.order[k].tolist():
            x = ADJUST[operation](x, draws.factors[k, operation].item())
    if not draws.policy.grey_first and draws.grey[k]:
        x = F.rgb_to_grayscale(x, 3)
    return x


def blur_oracle(x, draws, k):
    kernel = 2 * v.blur_radius(draws.policy, x.shape[-1]) + 1
    return (
        F.gaussian_blur(x, [kernel] * 2, [draws.sigma[k].item()] * 2) if draws.blur[k] and kernel > 1 else x
    )


def oracle(image, draws, k, size):
    """MoCo v2's order: crop, jitter, greyscale, blur, [solarize], flip, normalise."""
    x = F.resized_crop(image.float() / 255, *draws.boxes[k].tolist(), [size, size], antialias=True)
    x = blur_oracle(colour_oracle(x, draws, k), draws, k)
    x = F.solarize(x, draws.policy.solarize_threshold) if draws.solarize[k] else x
    x = F.hflip(x) if draws.flip[k] else x
    return F.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "height,width,size", [(64, 64, 32), (96, 96, 96), (33, 57, 24), (20, 20, 48), (160, 90, 64)]
)
def test_crop_resize_is_torchvisions(height, width, size):
    images = photographs(12, height, width)
    draws = v.draw(v.SIMCLR, 12, height, width, seeded())
    draws = replace(draws, flip=torch.zeros(12, dtype=torch.bool))
    ours = v.geometry(stored(images), draws, size)
    for k, image in enumerate(images):
        theirs = F.resized_crop(image.float() / 255, *draws.boxes[k].tolist(), [size, size], antialias=True)
        assert (ours[k] - theirs).abs().max() < 1e-5


def test_flip_is_exact():
    images = photographs(8, 48, 40)
    draws = v.draw(v.CROP_ONLY, 8, 48, 40, seeded())
    off, on = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    plain = v.geometry(images, replace(draws, flip=off), 32)
    flipped = v.geometry(images, replace(draws, flip=on), 32)
    assert (plain - flipped.flip(-1)).abs().max() < 1e-6
    # a crop at its own size is a copy: the flip must give the same bits
    same = replace(draws, boxes=torch.tensor([[3, 2, 32, 32]]).expand(8, 4))
    flipped = v.geometry(images, replace(same, flip=on), 32)
    assert torch.equal((flipped * 255).round().byte(), images[:, :, 3:35, 2:34].flip(-1))
    assert torch.equal(flipped, v.geometry(images, replace(same, flip=off), 32).flip(-1))


@pytest.mark.parametrize("operation", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_operation_is_torchvisions(operation):
    images = photographs(24, 31, 31).float() / 255
    draws = v.draw(EVERYTHING, 24, 31, 31, seeded(operation))
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(24, 1)
    neutral[:, operation] = draws.factors[:, operation]
    off = torch.zeros(24, dtype=torch.bool)
    draws = replace(draws, factors=neutral, jitter=~off, grey=off)
    ours = step(v.colour_, images, draws)
    moved = 0.0
    for k in range(24):
        theirs = ADJUST[operation](images[k], neutral[k, operation].item())
        assert (ours[k] - theirs).abs().max() < ONE
        moved = max(moved, (theirs - images[k]).abs().max().item())
    assert moved > 0.2  # the operation did something to compare


def test_orders_differ_between_images_and_follow_torchvision():
    images = photographs(48, 24, 24).float() / 255
    draws = v.draw(EVERYTHING, 48, 24, 24, seeded(3))
    ours = step(v.colour_, images, draws)
    assert len({tuple(order) for order in draws.order.tolist()}) > 12
    for k in range(48):
        assert (ours[k] - colour_oracle(images[k], draws, k)).abs().max() < ONE
    assert ours.min() >= 0 and ours.max() <= 1


@pytest.mark.parametrize("policy", [v.MOCO_V2, v.BYOL_T, v.SIMCLR], ids=lambda p: p.name)
@pytest.mark.parametrize("size", [9, 32, 65])
def test_blur_is_torchvisions(policy, size):
    images = photographs(10, size, size).float() / 255
    draws = v.draw(replace(policy, blur_p=0.7), 10, size, size, seeded(size))
    ours = step(v.blur_, images, draws)
    for k in range(10):
        assert (ours[k] - blur_oracle(images[k], draws, k)).abs().max() < 1e-5
    assert torch.equal(ours[~draws.blur], images[~draws.blur])


def test_solarize_and_greyscale_are_torchvisions():
    images = photographs(16, 20, 20).float() / 255
    draws = v.draw(replace(EVERYTHING, jitter_p=0.0, solarize_threshold=0.4), 16, 20, 20, seeded(1))
    solarized, grey = step(v.solarize_, images, draws), step(v.colour_, images, draws)
    for k in range(16):
        theirs = F.solarize(images[k], 0.4) if draws.solarize[k] else images[k]
        assert (solarized[k] - theirs).abs().max() < ONE
        theirs = F.rgb_to_grayscale(images[k], 3) if draws.grey[k] else images[k]
        assert (grey[k] - theirs).abs().max() < ONE
    assert 0 < draws.solarize.sum() < 16 and 0 < draws.grey.sum() < 16


@pytest.mark.parametrize("policy", [*v.POLICIES.values(), EVERYTHING], ids=lambda p: p.name)
def test_every_policy_equals_torchvision_composed_in_the_official_order(policy):
    """Tolerance: half a step of an 8-bit image, everywhere (measured: under a thousandth of a step)."""
    images = photographs(24, 72, 60, seed=5)
    draws = v.draw(policy, 24, 72, 60, seeded(7))
    ours = v.apply(stored(images), draws, 40)
    for k, image in enumerate(images):
        assert (ours[k] - oracle(image, draws, k, 40)).abs().max() < 0.5 * ONE / 0.225


def test_blur_before_the_colours_would_be_noticed():
    """Why the blur is not folded into the geometry: through the clamps, the order moves pixels."""
    images = photographs(40, 64, 64).float() / 255
    draws = v.draw(replace(v.MOCO_V2, blur_p=1.0), 40, 64, 64, seeded())
    official = step(v.blur_, step(v.colour_, images, draws), draws)
    folded = step(v.colour_, step(v.blur_, images, draws), draws)
    assert (official - folded).abs().max() > 4 * ONE


def test_steps_compose_to_the_whole_and_threads_do_not_change_a_bit():
    images = photographs(70, 40, 40)
    draws = v.draw(EVERYTHING, 70, 40, 40, seeded())
    x, whole = v.geometry(images, draws, 48), v.apply(images, draws, 48)
    for change in (v.colour_, v.blur_, v.solarize_):
        assert change(x, draws) is x
    assert (v.normalize(x) - whole).abs().max() < 1e-5
    torch.set_num_threads(3)
    assert torch.equal(v.apply(images, draws, 48), whole)
    assert torch.get_num_threads() == 3


# --- the draws -------------------------------------------------------------------------------------------


def quantile_gap(ours, theirs):
    """The Kolmogorov-Smirnov distance of two samples."""
    grid = torch.cat([ours, theirs]).sort().values
    cdf = [torch.searchsorted(x.sort().values, grid, right=True) / len(x) for x in (ours, theirs)]
    return (cdf[0] - cdf[1]).abs().max().item()


@pytest.mark.parametrize("height,width", [(64, 64), (48, 96), (100, 40)])
def test_crops_are_distributed_as_random_resized_crops(height, width):
    n = 3000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    )
    ours = v.draw(v.SIMCLR, n, height, width, seeded()).boxes
    for measure in (
        lambda b: (b[:, 2] * b[:, 3]).double(),  # area
        lambda b: b[:, 3] / b[:, 2],  # aspect
        lambda b: b[:, 0] / (height - b[:, 2] + 1),  # place
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    ):
        # two samples of 3,000 from one distribution differ by more than 0.05 once in a thousand
        assert quantile_gap(measure(ours).double(), measure(theirs).double()) < 0.05
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("height,width", [(8, 200), (200, 8), (100, 1), (1, 100)])
def test_crop_falls_back_to_the_centre_as_torchvisions(height, width):
    policy = replace(v.CROP_ONLY, crop_scale=(1.0, 1.0))  # ten attempts cannot fit
    box = v.draw(policy, 5, height, width, seeded()).boxes
    theirs = T.RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    assert box.tolist() == [list(theirs)] * 5


@pytest.mark.parametrize("policy", v.POLICIES.values(), ids=lambda p: p.name)
def test_probabilities_and_ranges(policy):
    n = 20000
    draws = v.draw(policy, n, 32, 32, seeded(2))
    for name in ("flip", "jitter", "grey", "blur", "solarize"):
        p, rate = getattr(policy, f"{name}_p"), getattr(draws, name).double().mean().item()
        assert abs(rate - p) <= 4 * math.sqrt(p * (1 - p) / n), name
    strength = torch.tensor(policy.jitter)
    middle, spread = torch.tensor([1.0, 1.0, 1.0, 0.0]), draws.factors.aminmax(dim=0)
    assert torch.allclose(spread.min, middle - strength, atol=2e-3)
    assert torch.allclose(spread.max, middle + strength, atol=2e-3)
    low, high = policy.blur_sigma
    assert low <= draws.sigma.min() < low + 0.01 and high - 0.01 < draws.sigma.max() <= high
    orders = torch.unique(draws.order, dim=0, return_counts=True)[1]
    assert len(orders) == 24 and (orders.double() / n - 1 / 24).abs().max() < 0.007
    # jitter, greyscale and blur are drawn apart from each other
    flags = torch.stack([draws.flip, draws.jitter, draws.grey, draws.blur]).double()
    product = (flags[:, None] * flags[None]).mean(-1) - flags.mean(-1)[:, None] * flags.mean(-1)[None]
    assert product.triu(1).abs().max() < 0.01


def test_policies_hold_the_papers_numbers():
    assert v.MOCO_V2.crop_scale == v.SIMSIAM.crop_scale == (0.2, 1.0)
    assert v.MOCO_V2.jitter == v.SIMSIAM.jitter == (0.4, 0.4, 0.4, 0.1)
    assert v.MOCO_V1.grey_first and v.MOCO_V1.jitter == (0.4,) * 4 and v.MOCO_V1.blur_p == 0
    assert v.SIMCLR.jitter == v.RELATIONAL.jitter == (0.8, 0.8, 0.8, 0.2) and v.RELATIONAL.blur_p == 0
    assert (v.BYOL_T.blur_p, v.BYOL_T.solarize_p) == (1.0, 0.0)
    assert (v.BYOL_T_PRIME.blur_p, v.BYOL_T_PRIME.solarize_p) == (0.1, 0.2)
    assert all(policy.source and name == policy.name for name, policy in v.POLICIES.items())


def test_a_blur_in_pixels_of_224_means_the_same_at_every_size():
    """One picture at two sizes, blurred at both: the small one is the large one made smaller."""
    large = torch.nn.functional.interpolate(
        torch.rand(6, 3, 7, 7, generator=seeded()), (128, 128), mode="bicubic"
    )
    small = F.resize(large, [64, 64], antialias=True)
    strong = replace(v.MOCO_V2, blur_p=1.0, blur_sigma=(6.0, 12.0))
    assert strong.blur_for(224) == strong and strong.blur_for(112).blur_sigma == (3.0, 6.0)

    def blurred(images, policy):
        return step(v.blur_, images, v.draw(policy, 6, 64, 64, seeded()))

    alike = F.resize(blurred(large, strong.blur_for(128)), [64, 64], antialias=True)
    assert (blurred(small, strong.blur_for(64)) - alike).abs().max() < 0.02
    assert (blurred(small, strong) - alike).abs().max() > 0.05  # 12 pixels of a view of 64 are too many


def test_reproducible_from_a_generator():
    images = photographs(20, 30, 30)
    first, again = (v.views(images, v.MOCO_V2, seeded(4), 24) for _ in range(2))
    assert torch.equal(first, again)
    generator = seeded(4)
    v.views(images, v.MOCO_V2, generator, 24)
    second = v.views(images, v.MOCO_V2, generator, 24)
    assert not torch.equal(first, second)
    state = torch.random.get_rng_state()
    v.views(images, v.MOCO_V2, seeded(4), 24)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone


def test_every_image_has_its_own_draw():
    one = photographs(1, 40, 40).expand(32, 3, 40, 40)
    out = v.views(one, v.MOCO_V2, seeded(), 16)
    assert len(torch.unique(out.flatten(1), dim=0)) == 32


# --- several views at once -------------------------------------------------------------------------------


def test_several_views_are_the_draws_of_one_call_after_the_other():
    images = stored(photographs(11, 40, 32))
    policies = [v.BYOL_T, v.BYOL_T_PRIME, v.BYOL_T_PRIME, v.SIMCLR, v.SIMCLR, v.SIMCLR, v.BYOL_T, EVERYTHING]
    together, alone = seeded(6), seeded(6)
    ours = v.several(images, policies, together, 24)
    assert len(ours) == len(policies)
    for policy, view in zip(policies, ours, strict=True):
        single = v.views(images, policy, alone, 24)
        assert (view - single).abs().max() < 1e-5  # pieces of another length may round otherwise
        assert view.shape == single.shape and view.dtype == single.dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(together.get_state(), alone.get_state())


def test_several_without_a_generator_draws_from_the_global_one():
    images = photographs(5, 20, 20)
    torch.manual_seed(3)
    first = v.several(images, [v.MOCO_V2] * 2, None, 16)
    torch.manual_seed(3)
    second = [v.views(images, v.MOCO_V2, None, 16) for _ in range(2)]
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(first, second, strict=True))
    assert not torch.equal(*first)


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that is made while it is on, by its address."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                known = self.bytes.get(storage.data_ptr(), 0)
                self.bytes[storage.data_ptr()] = max(known, storage.nbytes())
        return result


def test_32_views_of_64_images_are_one_pass_in_bounded_memory(monkeypatch):
    """As relational reasoning asks for them: 2,048 views, no copies of the images, small pieces."""
    images, passes, plain = stored(photographs(64, 48, 48)), [], v.apply
    monkeypatch.setattr(v, "apply", lambda *args: passes.append(len(args[1])) or plain(*args))
    with Allocations() as made:  # with one thread all work is done in this one
        seen = v.several(images, [v.RELATIONAL] * 32, seeded(), 32)
    assert passes == [2048]
    assert len(seen) == 32 and {tuple(view.shape) for view in seen} == {(64, 3, 32, 32)}
    assert len({view.untyped_storage().data_ptr() for view in seen}) == 1  # parts of one result, not copies
    sizes = sorted(made.bytes.values())
    assert sizes[-1] == 2048 * 3 * 32 * 32 * 4  # the result: 25 MB
    assert (
        sizes[-2] < sizes[-1] / 4 < 2048 * images[0].nbytes
    )  # neither the images 32 times, nor a float copy
    flat = torch.stack(seen)[:, 0].flatten(1)
    assert len(torch.unique(flat, dim=0)) == 32  # of the same image, 32 draws


def test_one_draw_for_each_view_of_each_image_or_an_error():
    images = photographs(4, 16, 16)
    draws = v.Draws.joined([v.draw(v.SIMCLR, 4, 16, 16, seeded(i)) for i in range(3)])
    assert len(draws) == 12 and v.apply(images, draws, 8).shape == (12, 3, 8, 8)
    for k, part in enumerate(v.apply(images, draws, 8).split(4)):
        assert (part - v.views(images, v.SIMCLR, seeded(k), 8)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="draws are for 11 images"):
        v.apply(images, draws[torch.arange(11)], 8)


def test_in_channels_is_the_luma_or_nothing():
    images = photographs(6, 20, 20)
    view = v.views(images, v.MOCO_V2, seeded(), 16)
    assert v.in_channels(view, 3) is view
    grey = v.in_channels(view, 1)
    assert grey.shape == (6, 1, 16, 16) and v.in_channels(view[0], 1).shape == (1, 16, 16)
    by_hand = 0.2989 * view[:, 0] + 0.587 * view[:, 1] + 0.114 * view[:, 2]
    assert (grey[:, 0] - by_hand).abs().max() < 1e-6
    for dtype in (torch.bfloat16, torch.float64):
        assert v.in_channels(view.to(dtype), 1).dtype == dtype


# --- shapes, dtypes, errors ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), size=st.integers(1, 50), count=st.integers(1, 9),
    seed=st.integers(0, 2**31), policy=st.sampled_from([*v.POLICIES.values(), EVERYTHING]),
    permuted=st.booleans(),
)  # fmt: skip
def test_any_size_is_torchvisions(height, width, size, count, seed, policy, permuted):
    images = photographs(count, height, width, seed % 1000)
    draws = v.draw(policy, count, height, width, seeded(seed))
    out = v.apply(stored(images) if permuted else images, draws, size)
    assert out.shape == (count, 3, size, size) and out.dtype == torch.float32 and out.isfinite().all()
    assert out.is_contiguous(memory_format=torch.channels_last)
    for k in range(count):
        assert (out[k] - oracle(images[k], draws, k, size)).abs().max() < ONE / 0.225


@pytest.mark.parametrize("threads", [1, 2])
def test_autocast_and_inference_mode_change_nothing(threads):
    images = photographs(70, 32, 32)
    torch.set_num_threads(threads)  # both modes belong to a thread
    plain = v.views(images, v.MOCO_V2, seeded(), 64)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        inside = v.views(images, v.MOCO_V2, seeded(), 64)
    assert torch.equal(plain, inside) and not inside.is_inference()


def test_centre_is_the_whole_image_resized_and_normalised():
    images = photographs(5, 50, 40)
    theirs = F.resize(images.float() / 255, [32, 32], antialias=True)
    assert (v.unnormalize(v.centre(images, 32)) - theirs).abs().max() < 1e-5
    assert (v.centre(images, 32) - v.normalize(theirs)).abs().max() < 1e-4
    state = torch.random.get_rng_state()
    v.centre(images, 32)
    assert torch.equal(state, torch.random.get_rng_state())


def test_errors_name_the_value_and_the_way_out():
    images = photographs(4, 16, 16)
    with pytest.raises(ValueError, match=r"float32 .*give uint8"):
        v.views(images.float(), v.MOCO_V2, seeded(), 8)
    with pytest.raises(ValueError, match=r"give uint8 \(B, 3, H, W\)"):
        v.views(images[:, :1], v.MOCO_V2, seeded(), 8)
    with pytest.raises(ValueError, match="draws are for 3 images"):
        v.apply(images, v.draw(v.MOCO_V2, 3, 16, 16), 8)
    with pytest.raises(ValueError, match="size is 0"):
        v.views(images, v.MOCO_V2, seeded(), 0)
    with pytest.raises(ValueError, match="blur_p is 1.5"):
        replace(v.MOCO_V2, blur_p=1.5)
    with pytest.raises(ValueError, match="hue <= 0.5"):
        replace(v.MOCO_V2, jitter=(0.4, 0.4, 0.4, 0.6))
    with pytest.raises(ValueError, match="crop_scale"):
        replace(v.MOCO_V2, crop_scale=(1.0, 0.2))


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the same code is tested on the CPU"
)
def test_cuda_gives_the_cpus_views():
    images = photographs(40, 72, 60)
    for policy in (*v.POLICIES.values(), EVERYTHING):
        cpu = v.views(images, policy, seeded(), 40)
        cuda = v.views(images.cuda(), policy, seeded(), 40)
        assert cuda.is_cuda and (cuda.cpu() - cpu).abs().max() < ONE / 0.225
