"""Looking inside: each measure against brute force, another library, or an encoder whose answer is known."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny import noise
from torch import nn

from ssl_lessons import evaluate, gaze, inside, networks, views
from ssl_lessons.images import ImageStore

SIDE = 16


def conv(train=True):
    torch.manual_seed(1)
    encoder = networks.tap(networks.Conv4((4, 4, 8, 8)), image_size=SIDE)
    for norm in (m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)  # so that eval and train mode do not agree
        norm.running_var.uniform_(0.5, 1.5)
    return encoder.train(train)


def photos(count=6, size=24):
    """Smooth, coloured pictures, all different: noise has nothing that a crop or a blur would spare."""
    generator = torch.Generator().manual_seed(2)
    small = torch.rand(count, 3, 5, 5, generator=generator)
    large = F.interpolate(small, size, mode="bicubic").clamp(0, 1)
    rows = (255 * large).byte().transpose(1, 2).contiguous()  # (N, H, 3, W)
    return rows.transpose(1, 2)


@pytest.fixture
def untouched():
    """An encoder in train mode, but one part of it not; after the test it must be the same to the bit."""
    encoder = conv()
    encoder.network.blocks[0].eval()
    before = copy.deepcopy(encoder.state_dict())
    modes = {name: module.training for name, module in encoder.named_modules()}
    yield encoder
    assert modes == {name: module.training for name, module in encoder.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(w.grad is None and w.requires_grad for w in encoder.parameters())
    assert not any(module._forward_hooks for module in encoder.modules())


# ---- What it finds alike ---------------------------------------------------------------------------------


def test_nearest_is_what_brute_force_finds():
    train, query = torch.randn(1500, 7), 3 * torch.randn(1100, 7)  # more queries than one block
    indices, cosines = inside.nearest(train, query, 4)
    assert indices.dtype == torch.int64 and cosines.dtype == torch.float32
    assert indices.shape == cosines.shape == (1100, 4)
    for row in (0, 1023, 1024, 1099):
        each = F.cosine_similarity(query[row][None], train)
        assert cosines[row].tolist() == pytest.approx(
            each.sort(descending=True).values[:4].tolist(), abs=1e-6
        )
        assert each[indices[row]].tolist() == pytest.approx(cosines[row].tolist(), abs=1e-6)


@pytest.mark.parametrize("k", [0, 6])
def test_nearest_refuses_more_neighbours_than_images(k):
    with pytest.raises(ValueError, match=f"k {k} must lie between 1 and the 5 images"):
        inside.nearest(torch.randn(5, 3), torch.randn(2, 3), k)


@pytest.mark.parametrize("shape", [(50, 6), (8, 30)])
def test_principal_components_are_scikit_learns(shape):
    from sklearn.decomposition import PCA

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[1] + 1) + 5
    scores, shares = inside.principal(x, 3)
    other = PCA(3, svd_solver="full").fit(x.double().numpy())
    theirs = torch.from_numpy(other.transform(x.double().numpy()))
    assert scores.dtype == shares.dtype == torch.float32 and scores.shape == (shape[0], 3)
    for mine, column in zip(scores.T.double(), theirs.T, strict=True):
        sign = 1 if (mine @ column) > 0 else -1  # a direction has two
        assert torch.allclose(mine, sign * column, atol=1e-3)
    assert shares.tolist() == pytest.approx(other.explained_variance_ratio_.tolist(), abs=1e-6)
    assert torch.equal(inside.embed_2d(x), inside.principal(x, 2)[0])


def test_principal_components_have_one_sign():
    x = torch.randn(40, 5)
    (a, _), (b, _) = inside.principal(x), inside.principal(x[torch.randperm(40)])
    assert torch.allclose(a.sort(dim=0).values, b.sort(dim=0).values, atol=1e-4)
    axes = torch.tensor([[0.0, 0.0], [-3.0, 1.0], [0.0, -1.0]])
    assert inside.principal(axes)[0][1, 0] < 0  # along +x, for its largest entry is positive


@pytest.mark.parametrize("x", [torch.randn(1, 4), torch.randn(4, 1), torch.randn(3, 4, 5)])
def test_principal_components_refuse_what_has_no_two(x):
    with pytest.raises(ValueError, match="no 2 principal components"):
        inside.principal(x, 2)


def test_principal_components_of_one_point():
    scores, shares = inside.principal(torch.ones(5, 3))
    assert not scores.any() and not shares.any()


def test_tsne_keeps_neighbours_and_obeys_its_seed():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(15, 60, generator=generator) + 9 * i for i in range(3)])
    maps = [inside.embed_2d(x, "tsne", seed=seed, perplexity=5) for seed in (0, 0, 1)]
    assert maps[0].shape == (45, 2) and maps[0].dtype == torch.float32
    assert torch.equal(maps[0], maps[1]) and maps[0].isfinite().all()
    labels = torch.arange(45) // 15
    near = torch.cdist(maps[0], maps[0]).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(labels[near], labels)


def test_embed_2d_refuses_too_few_images_and_an_unknown_way():
    with pytest.raises(
        ValueError, match="perplexity 30 needs more than 90 images, and here are 90.* 1 to 29"
    ):
        inside.embed_2d(torch.randn(90, 4), "tsne")
    with pytest.raises(ValueError, match="'umap' is not known; choose one of: pca, tsne"):
        inside.embed_2d(torch.randn(90, 4), "umap")


# ---- Layer by layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv4", "resnet18", "resnet18 small"])
def test_every_depth_gives_what_a_tap_gives(name, monkeypatch):
    monkeypatch.setattr(inside, "BATCH", 5)  # 12 images: three passes, the last a short one
    torch.manual_seed(0)
    stem = "small" if "small" in name else None if name == "conv4" else "imagenet"
    network = networks.build(name.split()[0], 32, stem)
    encoder, store = networks.tap(network, image_size=32), noise(12, 36)
    found = inside.layer_features(encoder, store, 32, device="cpu")
    assert list(found) == ["pixels", *inside.depths(encoder)]
    for layer, x in found.items():
        if layer != "pixels":
            there = networks.tap(network, layer, 32)
            assert x.dtype == torch.float32 and x.shape == (12, there.width)
            assert torch.equal(x, evaluate.features(there, store, 32, device="cpu", batch=5)), layer
    assert torch.equal(found["pixels"], views.centre(store.images, 32).flatten(1))
    deepest = evaluate.features(encoder, store, 32, device="cpu", batch=5)
    assert torch.allclose(found[inside.depths(encoder)[-1]], deepest, atol=1e-6)


def test_pixels_of_a_large_view_are_made_smaller():
    encoder = networks.tap(networks.conv4(), image_size=64)
    found = inside.layer_features(encoder, noise(3, 70), 64, ["pixels"], "cpu")
    assert found["pixels"].shape == (3, 3 * inside.PIXELS**2)


def test_a_layer_used_twice_is_read_at_its_first_use_and_before_it_is_overwritten():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shrink, self.relu = nn.AvgPool2d(2), nn.ReLU(inplace=True)

        def forward(self, images):
            return self.shrink(self.relu(self.shrink(images) - 1))

    encoder = networks.tap(Twice(), image_size=SIDE)
    store = noise(4)
    small = F.avg_pool2d(views.centre(store.images, SIDE), 2)
    found = inside.layer_features(encoder, store, SIDE, ["relu", "shrink"], "cpu")
    assert list(found) == ["relu", "shrink"]  # as asked for
    assert torch.allclose(found["shrink"], small.mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(found["relu"], (small - 1).relu().mean(dim=(2, 3)), atol=1e-6)


def test_layers_that_are_not_there_are_refused(untouched):
    with pytest.raises(ValueError, match="'block' is not in the network; choose among: pixels, blocks"):
        inside.layer_features(untouched, noise(), SIDE, ["block"], "cpu")
    early = networks.tap(untouched.network, "blocks.1", SIDE)
    with pytest.raises(ValueError, match="the pass ends before layer 'blocks.3'"):
        inside.layer_features(early, noise(), SIDE, ["blocks.0", "blocks.3"], "cpu")
    with pytest.raises(ValueError, match="no depths are known for a Sequential; name layers among: 0"):
        inside.depths(networks.tap(nn.Sequential(nn.Flatten()), image_size=SIDE))


def test_layer_accuracy_is_that_of_the_judges(untouched):
    train, test = noise(60), noise(30)
    found = inside.layer_accuracy(untouched, train, test, SIDE, ["pixels", "blocks.3"], True, "cpu")
    assert list(found) == ["pixels", "blocks.3"] and found["blocks.3"]["width"] == 8
    x, y = (evaluate.features(untouched, store, SIDE, device="cpu") for store in (train, test))
    said = evaluate.knn(x, train.labels, y)
    assert found["blocks.3"]["knn"] == (said == test.labels).float().mean().item()
    said = evaluate.linear_probe(x, train.labels, y)[0]
    assert found["blocks.3"]["linear"] == (said == test.labels).float().mean().item()
    assert "linear" not in inside.layer_accuracy(untouched, train, test, SIDE, ["blocks.3"])["blocks.3"]


# ---- What it ignores -------------------------------------------------------------------------------------


class Grey(nn.Module):
    """Sees lightness alone: as torchvision's greyscale weighs the colours, so saturation leaves it alone."""

    def forward(self, images):
        luma = torch.tensor(views.LUMA).view(3, 1, 1)
        return (views.unnormalise(images) * luma).sum(1).flatten(1) / sum(views.LUMA)


class Lengths(nn.Module):
    """Sees how bright and colourful an image is as a whole, wherever things are."""

    def forward(self, images):
        return images.mean(dim=(2, 3)) + 1


def test_single_changes_change_one_thing_each_and_always():
    images = photos()
    plain = views.centre(images, 32)
    policies = inside.single_changes(views.SIMCLR)
    assert list(policies) == [
        "crop", "flip", "brightness", "contrast", "saturation", "hue", "greyscale", "blur", "solarize"
    ]  # fmt: skip
    for name, policy in policies.items():
        view = views.views(images, policy, torch.Generator().manual_seed(0), 32)
        changed = (view - plain).abs().amax(dim=(1, 2, 3)) > 1e-3
        assert changed.sum() > 4, name  # of 6 images; a blur's σ may be too small to see
        draws = views.draw(policy, 40, 24, 24, torch.Generator().manual_seed(0))
        assert (draws.boxes == torch.tensor([0, 0, 24, 24])).all() == (name != "crop")
        assert draws.flip.all() == draws.flip.any() == (name == "flip")
    assert policies["hue"].jitter == (0, 0, 0, 0.2) and policies["brightness"].jitter == (0.8, 0, 0, 0)
    assert policies["crop"].crop_scale == (0.08, 1.0) and policies["blur"].blur_kernel == 0.1
    assert "hue" not in inside.single_changes(views.CROP_ONLY)  # its strength is zero
    still = views.views(images, inside.NEUTRAL, torch.Generator().manual_seed(0), 32)
    assert torch.allclose(still, plain, atol=1e-6)


def test_an_encoder_that_ignores_colour_does_not_move_with_it():
    # without clamping at 0 and 1, which changes lightness: pictures of middling colours
    images = (photos().float() * 0.3 + 90).byte().transpose(1, 2).contiguous().transpose(1, 2)
    grey, colour = (inside.invariance(each, images, SIDE, device="cpu") for each in (Grey(), Lengths()))
    for change in ("saturation", "greyscale"):
        assert grey[change]["relative"] < 1e-4 < 1e-3 < colour[change]["relative"], change
    assert grey["crop"]["relative"] > 0.1 and grey["flip"]["relative"] > 0.1
    assert colour["flip"]["relative"] < 1e-9 < colour["hue"]["relative"]


def test_an_encoder_of_the_mean_of_greyscale_does_not_move_with_hue():
    class Greatest(nn.Module):
        """Hue keeps the greatest of the three colours (the V of HSV)."""

        def forward(self, images):
            return views.unnormalise(images).amax(dim=1).flatten(1)

    found = inside.invariance(Greatest(), photos(), SIDE, device="cpu")
    assert found["hue"]["relative"] < 1e-5 < 0.1 < found["crop"]["relative"]


def test_invariance_is_what_its_docstring_says(untouched, monkeypatch):
    monkeypatch.setattr(inside, "BATCH", 6)
    images = photos(6)
    change = {"jitter": inside.single_changes()["brightness"], "crop": inside.single_changes()["crop"]}
    found = inside.invariance(untouched, images, SIDE, change, draws=3, seed=7, device="cpu")
    untouched_copy = copy.deepcopy(untouched).eval()
    with torch.no_grad():
        plain = untouched_copy(views.centre(images, SIDE))
        pairs = list(itertools.combinations(range(6), 2))
        between = sum(1 - F.cosine_similarity(plain[i], plain[j], dim=0) for i, j in pairs) / len(pairs)
        for name, policy in change.items():
            generator = torch.Generator().manual_seed(7)
            moved = [untouched_copy(views.views(images, policy, generator, SIDE)) for _ in range(3)]
            moved = torch.stack([1 - F.cosine_similarity(plain, each) for each in moved]).mean(dim=0)
            row = found[name]
            assert row["between"] == pytest.approx(between.item(), rel=1e-3)
            assert row["moved"] == pytest.approx(moved.mean().item(), rel=1e-3)
            assert row["relative"] == pytest.approx((moved / between).mean().item(), rel=2e-3)
            expected = (moved / between).quantile(0.25).item()
            assert row["q25"] == pytest.approx(expected, rel=2e-3)
            assert row["q10"] <= row["q25"] <= row["median"] <= row["q75"] <= row["q90"]


def test_a_collapsed_encoder_moves_nowhere_and_one_image_is_refused():
    class One(nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 4)

    found = inside.invariance(One(), photos(), SIDE, device="cpu")
    assert all(row["relative"] == row["between"] == 0 for row in found.values())
    for images, draws in ((photos(1), 1), (photos(3), 0)):
        with pytest.raises(ValueError, match="at least 2 images and 1 draw"):
            inside.invariance(One(), images, SIDE, draws=draws)


# ---- Where it looks --------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Reads the upper left quarter and nothing else."""

    def forward(self, images):
        half = images.shape[-1] // 2
        return images[:, :, :half, :half].flatten(1)


def test_occlusion_finds_the_corner_that_is_read():
    maps = gaze.occlusion(Corner(), photos(3), SIDE, patch=4, stride=2, device="cpu")
    assert maps.shape == (3, SIDE, SIDE) and maps.dtype == torch.float32
    assert (maps[:, :4, :4] > 0).all()
    beyond = maps.clone()
    beyond[:, :11, :11] = 0  # a patch of 4 that touches row 7 reaches row 10
    assert beyond.max() < 1e-6 and (maps >= 0).all()


def test_occlusion_is_the_mean_over_the_places_that_hide_a_pixel():
    image, encoder = photos(1), conv(train=False)
    found = gaze.occlusion(encoder, image, SIDE, patch=7, stride=6, device="cpu")[0]
    view, total, times = views.centre(image, SIDE), torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    with torch.no_grad():
        for top, left in itertools.product((0, 6, 9), (0, 6, 9)):  # the last place touches the edge
            hidden = view.clone()
            hidden[:, :, top : top + 7, left : left + 7] = 0
            moved = 1 - F.cosine_similarity(encoder(hidden), encoder(view))
            total[top : top + 7, left : left + 7] += moved
            times[top : top + 7, left : left + 7] += 1
    assert torch.allclose(found, total / times, atol=1e-5) and found.max() > 1e-4


@pytest.mark.parametrize("patch, stride", [(17, 4), (4, 5), (4, 0), (0, 0)])
def test_occlusion_refuses_a_patch_that_does_not_fit(patch, stride):
    with pytest.raises(ValueError, match="choose 1 ≤ stride ≤ patch ≤ the view's side"):
        gaze.occlusion(Corner(), photos(1), SIDE, patch, stride)


@pytest.mark.parametrize("towards", [False, True])
def test_the_gradient_lies_in_the_corner_that_is_read(towards):
    other = torch.randn(3, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)) if towards else None
    sharp = gaze.gradient_map(Corner(), photos(3), SIDE, other, sigma=0, device="cpu")
    assert sharp.shape == (3, SIDE, SIDE) and (sharp[:, :8, :8] > 0).all()
    assert not sharp[:, 8:].any() and not sharp[:, :, 8:].any()
    smooth = gaze.gradient_map(Corner(), photos(3), SIDE, other, sigma=1, device="cpu")
    assert torch.allclose(smooth.sum((1, 2)), sharp.sum((1, 2)), rtol=0.2) and (smooth[:, 8, :8] > 0).all()


def test_gradient_of_the_length_is_the_image_itself():
    """‖x‖ has the gradient x / ‖x‖."""

    class Flat(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    images = photos(2)
    view = views.centre(images, SIDE)
    found = gaze.gradient_map(Flat(), images, SIDE, draws=1, sigma=0, device="cpu")
    assert torch.allclose(found, view.abs().sum(1) / view.flatten(1).norm(dim=1).view(2, 1, 1), atol=1e-6)
    noisy = [
        gaze.gradient_map(Flat(), images, SIDE, draws=2, sigma=0, seed=s, device="cpu") for s in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.allclose(noisy[0], found, atol=1e-4)


def test_gradient_map_refuses_directions_of_other_images():
    for towards, draws in ((torch.ones(2, 4), 1), (None, 0)):
        with pytest.raises(ValueError, match="directions for 3 images"):
            gaze.gradient_map(Corner(), photos(3), SIDE, towards, draws)


# ---- It stays as it was ----------------------------------------------------------------------------------


def test_looking_leaves_the_encoder_as_it_was(untouched):
    images, frozen = photos(4), copy.deepcopy(untouched).eval()
    inside.layer_features(untouched, noise(), SIDE, device="cpu")
    inside.invariance(untouched, images, SIDE, draws=1, device="cpu")
    maps = gaze.occlusion(untouched, images, SIDE, device="cpu"), gaze.gradient_map(untouched, images, SIDE)
    again = gaze.occlusion(frozen, images, SIDE, device="cpu"), gaze.gradient_map(frozen, images, SIDE)
    assert all(torch.equal(*pair) for pair in zip(maps, again, strict=True))  # eval mode inside


def test_an_encoder_of_one_channel_is_given_one():
    encoder = networks.tap(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1)), "1", SIDE, channels=1)
    store = ImageStore(photos(4), torch.arange(4), ("a", "b", "c", "d"), "photos", "test", "x")
    assert inside.layer_features(encoder, store, SIDE, ["0"], "cpu")["0"].shape == (4, 3)
    assert inside.invariance(encoder, store.images, SIDE, device="cpu")["hue"]["relative"] >= 0
    assert gaze.occlusion(encoder, store.images, SIDE, device="cpu").max() > 0
    assert gaze.gradient_map(encoder, store.images, SIDE, device="cpu").max() > 0
