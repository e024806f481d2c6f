"""Numbers in losses, figures, schedules, judgements and checks: right at any size, or refused."""

import functools
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_lessons import diagnose, evaluate, lab, optim
from ssl_lessons.devices import TrainingError
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.byol import BYOL, byol_loss, momentum_at
from ssl_lessons.methods.moco import MoCo, info_nce
from ssl_lessons.methods.relational import focal_bce
from ssl_lessons.methods.simclr import nt_xent
from ssl_lessons.methods.simsiam import SimSiam, negative_cosine
from ssl_lessons.networks import RULERS, Conv4
from ssl_lessons.policies import MOCO_V2, Policy


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(**fields):
    return Conv4((4, 4, 4, 8))


def store(count=16, labels=True, seed=0, classes=("a", "b")):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 20, 3, 20), dtype=torch.uint8, generator=generator).transpose(1, 2)
    labels = torch.arange(count) % len(classes) if labels else None
    return ImageStore(pixels, labels, classes, "noise", "train", f"noise {seed}")


def clusters(count=60, classes=3, seed=1):
    y = torch.arange(count) % classes
    return drawn(classes, 8, seed=9)[y] + 0.7 * drawn(count, 8, seed=seed), y


# ------------------------------------------------------------------------------------------ losses, figures

Z1, Z2 = drawn(8, 16), drawn(8, 16, seed=1) + drawn(8, 16)
SCALES = [1e-37, 1e-30, 1e-13, 1e-9, 0.3, 7.0, 1e9, 1e20, 1e37]
SCALE_FREE = {
    "negative_cosine": negative_cosine,
    "byol_loss": byol_loss,
    "nt_xent": lambda a, b: nt_xent(a, b, 0.2),
    "geometry": lambda a, b: torch.tensor([*diagnose.geometry(a, b).values()]),
    "effective_rank": lambda a, b: torch.tensor(diagnose.effective_rank(a)),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SCALE_FREE)
def test_losses_and_figures_do_not_depend_on_the_size_of_rows(fault, name, scale):
    loss = SCALE_FREE[name]
    fault("size of rows").right(torch.allclose(loss(Z1 * scale, Z2), loss(Z1, Z2), rtol=1e-5, atol=1e-6))
    fault("size of rows").right(torch.allclose(loss(Z1, Z2 * scale), loss(Z1, Z2), rtol=1e-5, atol=1e-6))
    fault("size of rows").right(torch.equal(loss(Z1 * 2**-7, Z2 * 2**9), loss(Z1, Z2)))


@pytest.mark.parametrize("scale", [1e-300, 1e200, 1e300])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_neither_do_they_in_float64(fault, name, scale):
    loss, z1, z2 = SCALE_FREE[name], Z1.double(), Z2.double()
    fault("size of rows").right(torch.allclose(loss(z1 * scale, z2), loss(z1, z2)))


PLAIN = {  # as they were written before, for ordinary numbers to the bit
    "negative_cosine": lambda a, b: -F.cosine_similarity(a, b.detach(), dim=1).mean(),
    "byol_loss": lambda a, b: 2 - 2 * F.cosine_similarity(a, b.detach(), dim=1).mean(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_numbers_and_gradients_are_the_same_to_the_bit(fault, name):
    a = (Z1 * torch.logspace(-3, 3, 8)[:, None]).requires_grad_()
    new, old = (
        (loss(a, Z2), *torch.autograd.grad(loss(a, Z2), a)) for loss in (SCALE_FREE[name], PLAIN[name])
    )
    fault("size of rows").right(all(map(torch.equal, new, old)))


@pytest.mark.parametrize("name", ["negative_cosine", "byol_loss", "nt_xent"])
def test_rows_of_zeros_have_a_finite_gradient_that_is_not_huge(fault, name):
    z = Z1.clone()
    z[2] = 0
    loss = SCALE_FREE[name](z.requires_grad_(), Z2)
    (gradient,) = torch.autograd.grad(loss, z)
    fault("size of rows").right(loss.isfinite() and gradient.abs().max() < 100)


@pytest.mark.parametrize("scale", [1e-20, 0.5, 2.0, 1e20])
@pytest.mark.parametrize("which", range(3))
def test_info_nce_wants_unit_vectors(fault, which, scale):
    rows = [F.normalize(z, dim=1) for z in (Z1, Z2, drawn(9, 16))]
    rows[which] = rows[which] * scale
    with fault("size of rows").refused(ValueError, says=("query", "key", "queue")[which]):
        info_nce(*rows, 0.2)


@pytest.mark.parametrize(
    "bad", [1e-39, 1e300, 0, -1.0, math.nan, "0.1", None, torch.ones(4), [0.1]], ids=repr
)
def test_temperatures_that_float32_cannot_divide_by(fault, bad):
    rows = [F.normalize(z, dim=1) for z in (Z1, Z2, drawn(9, 16))]
    for call in (lambda: nt_xent(Z1, Z2, bad), lambda: info_nce(*rows, bad)):
        with fault("temperatures").refused(ValueError, says=("temperature", "above 0")):
            call()


def test_temperatures_that_it_can(fault):
    for good in (0.2, 1, torch.tensor(0.2), 1e-6, 1e6):
        fault("temperatures").right(nt_xent(Z1, Z2, good).isfinite())


@pytest.mark.parametrize("wide", range(3))
def test_dtypes_meet_in_the_widest(fault, wide):
    rows = [F.normalize(z, dim=1) for z in (Z1, Z2, drawn(9, 16))]
    mixed = [z.double() if i == wide else z for i, z in enumerate(rows)]
    value = info_nce(*mixed, 0.2)
    fault("dtypes").right(value.dtype == torch.float64 and abs(value - info_nce(*rows, 0.2)) < 1e-5)
    fault("dtypes").right(byol_loss(Z1.half(), Z2.double()).dtype == torch.float64)


def test_complex_numbers_are_refused(fault):
    for call in (lambda z: nt_xent(z, z, 0.2), lambda z: byol_loss(Z1, z), diagnose.effective_rank):
        with fault("dtypes").refused(ValueError, says="complex"):
            call(torch.complex(Z1, Z1))
    x, y = clusters()
    for judge in (evaluate.knn, evaluate.linear_probe):
        with fault("dtypes").refused(ValueError, says=("real", "complex")):
            judge(x.to(torch.complex64), y, x)


@pytest.mark.parametrize("gamma", [0, 0.5, 1.0, 2.0])
def test_focal_losses_and_their_gradients_at_any_score(fault, gamma):
    scores, targets = (
        torch.tensor([-300.0, -110, -3, 0.5, 110, 300]).repeat(2),
        torch.tensor([0.0, 1]).repeat_interleave(6),
    )
    loss = focal_bce(scores.requires_grad_(), targets, gamma)
    (gradient,) = torch.autograd.grad(loss, scores)
    wrong = torch.sigmoid((1 - 2 * targets) * scores)
    plain = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    expected = (0.5 * wrong**gamma * plain).mean()
    fault("focal loss").right(torch.isclose(loss, expected, rtol=1e-6) and gradient.isfinite().all())


@pytest.mark.parametrize(
    ("name", "bad"),
    [("gamma", b) for b in (math.nan, math.inf, -1)] + [("alpha", b) for b in (1.5, -1, math.nan)],
)
def test_focal_numbers_out_of_range(fault, name, bad):
    with fault("focal loss").refused(ValueError, says=(name, str(bad))):
        focal_bce(drawn(4), torch.ones(4), **{name: bad})


# --------------------------------------------------------------------------------------- policies, schedules

POLICY = [
    ("jitter", (math.nan, 0, 0, 0)),
    ("jitter", (math.inf, 0, 0, 0)),
    ("jitter", 0.4),
    ("jitter", (1, 1, 1)),
]
POLICY += [("jitter", (0.4, 0.4, 0.4, 0.6)), ("jitter", (-0.1, 0, 0, 0)), ("jitter", (1e300, 0, 0, 0))]
POLICY += [("solarize_threshold", bad) for bad in (128, math.nan, -1)]
POLICY += [("crop_scale", bad) for bad in ((20, 100), (0.2, math.inf), (0, 1), (1.0, 0.2), 0.2, (0.2,))]
POLICY += [("crop_ratio", bad) for bad in ((0.75, math.inf), (0, 1), (2, 1))]
POLICY += [("blur_sigma", bad) for bad in ((0.1, math.inf), (0, 2), (math.nan, 2), 0.5)]
POLICY += [("blur_kernel", bad) for bad in (23, 0, -0.1, "wide", math.nan)]
POLICY += [("grey_first", bad) for bad in ("no", 1, None)] + [
    ("grey_p", bad) for bad in ("much", None, 1.1, True)
]
POLICY += [("name", 3)]


@pytest.mark.parametrize(("name", "bad"), POLICY)
def test_policies_refuse_what_no_picture_can_take(fault, name, bad):
    with fault("policies").refused(ValueError, says=name):
        replace(MOCO_V2, **{name: bad})


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("grey_first", "false", False),
        ("grey_p", "0.2", 0.2),
        ("blur_kernel", "0.1", 0.1),
        ("blur_kernel", None, None),
        ("jitter", [0.4, 0.4, 0.4, 0.1], (0.4, 0.4, 0.4, 0.1)),
        ("crop_scale", "(0.2, 1)", (0.2, 1)),
    ],
)
def test_policies_read_text_as_recipes_do(fault, name, given, value):
    policy = Policy("own", "here", **{name: given})
    fault("policies").right(getattr(policy, name) == value and hash(policy))


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("bad", [3, -1, 1.01, math.nan, math.inf, "soon", None])
def test_a_number_of_steps_is_no_share_of_a_run(fault, bad, schedule):
    with fault("schedules").refused(ValueError, says="progress"):
        momentum_at(0.99, bad, schedule)
    with fault("schedules").refused(ValueError, says="progress"):
        BYOL(small(), image_size=16).after_step(bad)


def test_a_share_that_rounding_has_taken_past_the_end(fault):
    fault("schedules").right(momentum_at(0.99, 1 + 1e-9) == pytest.approx(1) and momentum_at(0.9, 0) == 0.9)


@pytest.mark.parametrize(
    ("epoch", "epochs"), [(12, 10), (-1, 10), (0, 0), (math.nan, 10), (1, math.nan), (1, -3), ("x", 3)]
)
def test_epochs_outside_of_the_run(fault, epoch, epochs):
    method = SimSiam(small(), image_size=16)
    with fault("schedules").refused(ValueError, says="epoch"):
        optim.learning_rate(method.recipe, 8, epoch, epochs)


def test_an_optimiser_of_ones_own_follows_the_rate(fault):
    recipe = SimSiam(small(), image_size=16).recipe
    own = torch.optim.SGD(small().parameters(), lr=1.0)
    optim.set_learning_rate(own, recipe, 8, 2, 10)
    fault("schedules").right(own.param_groups[0]["lr"] == optim.learning_rate(recipe, 8, 2, 10))


@pytest.mark.parametrize(
    "bad", ["predictor", "my encoder part", ("predicter",), ("predictor", "forward"), ("encoder.network",)]
)
def test_names_of_constant_parts(fault, bad):
    method = SimSiam(small(), image_size=16)
    method.constant_lr = bad
    with fault("schedules").refused(TrainingError, says="constant_lr"):
        optim.build_optimizer(method)


# ------------------------------------------------------------------------------------------- MoCo's queue


def moco(queue=12, **fields):
    torch.manual_seed(0)
    return MoCo(small(), image_size=16, queue=queue, **fields).train()


def keys_of(method, views):
    with torch.no_grad():
        return method.embed_keys(views[1])


def test_keys_of_all_passes_of_a_step_are_enqueued(fault):
    method, passes = (
        moco(),
        [[drawn(4, 3, 16, 16, seed=2 * i), drawn(4, 3, 16, 16, seed=2 * i + 1)] for i in range(2)],
    )
    expected = torch.cat([keys_of(method, views) for views in passes])
    for views in passes:
        method(views).loss.backward()
    method.after_step()
    fault("queues").right(torch.allclose(method.queue[:8], expected, atol=1e-6) and method.pointer == 8)


def test_never_more_than_the_queue_holds_waits(fault):
    method, last = moco(queue=6), None
    for i in range(5):
        views = [drawn(4, 3, 16, 16, seed=i), drawn(4, 3, 16, 16, seed=i + 50)]
        last = keys_of(method, views)
        method(views)
    fault("queues").right(len(method._pending) == 2)
    method.after_step()
    fault("queues").right(
        torch.allclose(method.queue[(method.pointer - 4 + torch.arange(4)) % 6], last, atol=1e-6)
    )


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_a_pass_that_teaches_nothing_enqueues_nothing(fault, how):
    method, views = moco(), [drawn(4, 3, 16, 16), drawn(4, 3, 16, 16, seed=1)]
    queue = method.queue.clone()
    with torch.set_grad_enabled(how == "eval"):
        method.train(how != "eval")(views)
    method.after_step()
    fault("queues").right(torch.equal(method.queue, queue) and method.pointer == 0)


# --------------------------------------------------------------------------------------------- judgements


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e-8, 1e-3, 1e3, 1e9])
def test_judgements_do_not_depend_on_the_size_of_features(fault, scale):
    (x, y), (t, _) = clusters(), clusters(40, seed=5)
    size = 2.0 ** round(math.log2(scale))
    for judge in (evaluate.knn, lambda *given: evaluate.linear_probe(*given)[0]):
        fault("size of features").right(torch.equal(judge(x * size, y, t * size), judge(x, y, t)))
        fault("size of features").right(
            (judge(x * scale, y, t * scale) == judge(x, y, t)).float().mean() > 0.97
        )


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8]


@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_judgements_of_any_dtype(fault, dtype, labels):
    x, y = clusters()
    x = (8 * x + 100).round().to(dtype)
    for judge in (evaluate.knn, lambda *given: evaluate.linear_probe(*given)[0]):
        same = torch.equal(judge(x, y.to(labels), x), judge(x.float(), y, x.float()))
        fault("dtypes of features").right(same)


@pytest.mark.parametrize("within", ["plain", "inference_mode", "no_grad", "autocast", "gradients", "float64"])
def test_judgements_anywhere(fault, within):
    x, y = clusters()
    expected = [evaluate.knn(x, y, x), evaluate.linear_probe(x, y, x)[0]]
    around = {"inference_mode": torch.inference_mode(), "no_grad": torch.no_grad()}
    around["autocast"] = torch.autocast("cpu", dtype=torch.bfloat16)
    try:
        torch.set_default_dtype(torch.float64 if within == "float64" else torch.float32)
        with around.get(within, torch.enable_grad()):
            x, y = x.clone().requires_grad_(within == "gradients"), y.clone()
            for _ in range(2):
                found = [evaluate.knn(x, y, x), evaluate.linear_probe(x, y, x)[0]]
    finally:
        torch.set_default_dtype(torch.float32)
    fault("dtypes of features").right(all(map(torch.equal, found, expected)))


def test_class_ids_of_any_size(fault):
    x, y = clusters()
    ids = torch.tensor([7, 20261126, 2**60])
    for judge in (evaluate.knn, lambda *given: evaluate.linear_probe(*given)[0]):
        fault("labels and features").right(torch.equal(judge(x, ids[y], x), ids[judge(x, y, x)]))


@pytest.mark.parametrize(
    "bad", [{"k": True}, {"k": 2.5}, {"k": 0}, {"k": "many"}, {"t": "0.1"}, {"t": 1e-45}, {"t": math.nan}]
)
def test_neighbours_without_a_meaning(fault, bad):
    x, y = clusters()
    with fault("numbers of a judgement").refused(ValueError, says=str(next(iter(bad.values())))):
        evaluate.knn(x, y, x, **bad)


def test_float64_that_vanishes_in_float32(fault):
    x, y = clusters()
    with fault("size of features").refused(ValueError, says="tiny"):
        evaluate.knn(x.double() * 1e-60, y, x)


@pytest.mark.parametrize(
    "bad",
    [{"fractions": bad} for bad in ((0.123456789, 0.123456788), 0.1, (0.0,), (1.5,))]
    + [{"fractions": (0.5,), "draws": draws} for draws in (0, -1, 1.5, "two")],
)  # fmt: skip
def test_parts_of_the_labels_without_a_meaning(fault, bad, monkeypatch):
    monkeypatch.setattr(evaluate, "features", None)  # nothing is computed first
    with fault("numbers of a judgement").refused(ValueError, says=str([*bad][-1]).rstrip("s")):
        evaluate.judge(small(), store(), store(seed=1), 16, **bad)


def test_numbers_of_images(fault):
    for call in (
        lambda n: evaluate.knn_monitor(store(), store(), 16, most=n),
        lambda n: evaluate.features(small(), store(), 16, batch=n),
        lambda n: diagnose.measure(SimSiam(small(), image_size=16), store(), images=n),
        lambda n: diagnose.measure(SimSiam(small(), image_size=16), store(), batch=n),
    ):
        for bad in (0, -1, 2.5, "all"):
            with fault("numbers of a judgement").refused(ValueError, says=str(bad)):
                call(bad)


@pytest.mark.parametrize(
    "test", [store(labels=False), store(classes=("a", "c"))], ids=["no labels", "others"]
)
def test_stores_that_cannot_be_judged_are_known_before_training(fault, test):
    with fault("labels and features").refused(ValueError, says="noise"):
        evaluate.knn_monitor(store(), test, 16)
    with fault("labels and features").refused(ValueError, says="noise"):
        evaluate.fine_tune(None, store(), test, 16)  # before it looks at the encoder


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.layer = answer, nn.Linear(1, 1)

    def forward(self, images):
        return self.answer(images.flatten(1))


ANSWERS = {
    "tuple": lambda x: (x, x), "dict": lambda x: {"x": x}, "None": lambda x: None, "(B,)": lambda x: x[:, 0],
    "one row": lambda x: x[:1], "complex": lambda x: torch.complex(x, x), "failed": lambda x: x @ x,
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_encoders_that_return_no_features(fault, name):
    with fault("encoders").refused(ValueError, says=("Answers", "3, 16, 16")):
        evaluate.features(Answers(ANSWERS[name]), store(), 16, "cpu")


@pytest.mark.parametrize(
    "bad", [small().half(), small().double(), lambda x: x, None, "conv4"], ids=lambda b: type(b).__name__
)
def test_what_is_no_encoder(fault, bad):
    with fault("encoders").refused(ValueError, says=type(bad).__name__):
        evaluate.features(bad, store(), 16, "cpu")


def test_stores_without_images(fault):
    with fault("encoders").refused(ValueError, says="0 images"):
        evaluate.features(small(), store().subset([]), 16, "cpu")


def test_memory_errors_go_through():
    def full(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        evaluate.features(Answers(full), store(), 16, "cpu")


def test_features_come_back_where_they_cannot_be_kept(fault, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not kept"):
        x = evaluate.features(small(), store(), 16, "cpu", cache=tmp_path / "file")
    fault("a cache of features").right(x.shape == (16, 8), "lost")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.k, self.rule, self.config = nn.Conv2d(3, 2, 1), 1.0, F.relu, {"a": [1, (2.0, "x")]}
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, images):
        x = self.rule(self.inner(images)).flatten(1)
        return self.k * x + self.offset + self.config["a"][0]


def times(k):
    return lambda module, inputs, output: k * output


def changes(network, images):
    images.images[0, 0, 0, 0] += 7
    yield
    network.k = 2.0
    yield
    network.rule = torch.sin
    yield
    network.config["a"][0] = 3
    yield
    network.offset += 1
    yield
    hook = network.register_forward_hook(times(2.0))
    yield
    hook.remove()
    network.inner.register_forward_hook(times(3.0))
    yield
    network.inner._forward_hooks.clear()
    network.inner.register_forward_hook(times(4.0))
    yield
    network.rule = functools.partial(F.leaky_relu, negative_slope=0.3)
    yield
    network.rule = functools.partial(F.leaky_relu, negative_slope=0.4)
    yield
    network.forward = lambda images: images.flatten(1)[:, :3]
    yield


def test_a_cache_never_returns_features_of_what_has_changed(fault, tmp_path):
    torch.manual_seed(0)
    network, images = Scaled(), store()
    for _ in changes(network, images):
        for _ in range(2):
            cached = evaluate.features(network, images, 16, "cpu", cache=tmp_path)
            fault("a cache of features").right(
                torch.equal(cached, evaluate.features(network, images, 16, "cpu"))
            )
    other = replace(images, images=images.images.flip(0))
    cached = evaluate.features(network, other, 16, "cpu", cache=tmp_path)
    fault("a cache of features").right(torch.equal(cached, evaluate.features(network, other, 16, "cpu")))
    kept = len([*tmp_path.glob("*.pt")])
    fault("a cache of features").right(kept == 12, message=f"{kept} kept")


@pytest.mark.parametrize(
    "make", [small, RULERS["colours"], Scaled, lambda: evaluate.random_encoder("resnet18", 16)]
)
def test_a_cache_is_used_in_train_mode_too(fault, tmp_path, make):
    network = make()
    for mode in (True, False, True):
        evaluate.features(network.train(mode), store(), 16, "cpu", cache=tmp_path)
    fault("a cache of features").right(len([*tmp_path.glob("*.pt")]) == 1)


def test_code_typed_at_a_prompt_is_told(fault, tmp_path):
    for code in ("x + 1", "x * 1", "x + 2", "x + 1"):
        torch.manual_seed(0)
        network, names = Scaled(), {"__name__": "__main__"}
        exec(f"def rule(x): return {code}", names)
        network.rule = names["rule"]
        evaluate.features(network, store(), 16, "cpu", cache=tmp_path)
    fault("a cache of features").right(len([*tmp_path.glob("*.pt")]) == 3)


# ---------------------------------------------------------------------------------------------- exercises

UNEQUAL = [
    (1 + 2j, 1 + 0j, 0), (torch.tensor(1j), torch.tensor(0.0), 0), ({1.0: "q", 2.0: "r"}, [1.0, 2.0], 0),
    ({1.0, 2.0}, [1.0, 2.0], 0), ("12", [1.0, 2.0], 0), (2**53 + 1, 2**53, 0), ([2**60 + 1], [2**60], 0),
    (torch.tensor(1.0), [1.0, 2.0], 0), (1.0, (1.0, 2.0), 0), (torch.eye(2).to_sparse(), 2 * torch.eye(2), 0),
    (True, False, 0), (None, 1.0, 0), (math.nan, 1.0, 1e-5), (1 + 1e-3j, 1.0, 1e-5),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "reference", "atol"), UNEQUAL)
def test_checks_see_what_is_not_equal(fault, mine, reference, atol):
    with fault("answers").refused(AssertionError, says="✗ x"):
        lab.check("x", mine, reference, atol)


EQUAL = [(1 + 2j, 1 + 2j), (2**53 + 1, 2**53 + 1), (torch.eye(2).to_sparse(), torch.eye(2)), (1, 1.0)]
EQUAL += [(True, True), (torch.tensor([1.0, 2.0]), [1.0, 2.0]), ((1.0, [2, 3]), [1.0, (2, 3)])]


@pytest.mark.parametrize(("mine", "reference"), EQUAL)
def test_checks_see_what_is(fault, mine, reference):
    lab.check("x", mine, reference, atol=0)
    fault("answers").right(True)


def leave(x):
    sys.exit("done")


WRONG = [nn.CrossEntropyLoss(), functools.partial(math.sqrt, 2), math.sqrt, dict, None, 3, leave]
WRONG += [
    lambda x: torch.tensor(1.0),
    lambda x: x.to_sparse(),
    lambda x: {1: 2},
    lambda x: x * 1j,
    lambda x: "x",
]


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("mine", WRONG)
def test_an_answer_of_any_kind_ends_in_a_line(fault, mine, pair, capsys):
    right = (lambda x: (2 * x, x)) if pair else (lambda x: 2 * x)
    used = lab.assess("9.1", mine, right, lambda seed: (torch.eye(2) + seed,))
    text = capsys.readouterr().out
    fault("answers").right(used is right and "✗ 9.1" in text and "goes on" in text, message=text)


def test_what_an_answer_switches_is_put_back(fault):
    def mine(x):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return 2 * x

    lab.assess("9.1", mine, lambda x: 2 * x, lambda seed: (torch.ones(2),))
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    fault("answers").right(torch.is_grad_enabled() and dtype == torch.float32)


@pytest.mark.parametrize("bad", [0, -1, 2.5, None])
def test_no_answer_is_right_on_no_cases(fault, bad):
    with fault("answers").refused(ValueError, says=("seeds", str(bad))):
        lab.assess("9.1", None, lambda x: x, lambda seed: (1.0,), seeds=bad)


@pytest.mark.parametrize("bad", ["", "  ", "99.9 · nothing"])
def test_exercises_that_there_are_not(fault, bad):
    with fault("answers").refused(ValueError, says="not known"):
        lab.exercise(bad, lambda x: x)


@pytest.mark.parametrize("number", ["03.1", "04.1", "04.3"])
def test_a_scalar_where_a_pair_is_wanted(fault, number, capsys):
    lab.exercise(f"{number} x", lambda *given: torch.tensor(1.0))
    fault("answers").right("✗" in capsys.readouterr().out)
