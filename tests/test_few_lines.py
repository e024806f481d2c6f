"""The few-line interface: a folder of photographs, any network, any of the five methods, one's own loop."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision import models

import ssl_lessons
from ssl_lessons import BYOL, MoCo, Relational, SimCLR, SimSiam, networks, pretrain, shapes
from ssl_lessons.images import ImageStore, folder
from ssl_lessons.methods import byol
from ssl_lessons.networks import Conv4, tap
from ssl_lessons.training import build_optimizer
from ssl_lessons.views import LUMA, normalize, unnormalize

CPU = {"device": "cpu", "precision": "fp32", "progress": "none"}
SIZE = 16  # of the views, in pixels
METHODS = (SimCLR, MoCo, Relational, BYOL, SimSiam)
SMALL = {  # the lesson's recipes, with heads for a network of eight features
    SimCLR: {"head": (16, 8)},
    MoCo: {"head": (16, 8), "queue": 20},
    Relational: {"views": 3, "hidden": 16},
    BYOL: {"head": (16, 8), "predictor_hidden": 16},
    SimSiam: {"head": (16, 16, 8), "predictor_hidden": 8},
}
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def small(method, network=None, *, start=0, **fields):
    """A method of the lesson's recipe around a network of four narrow layers."""
    torch.manual_seed(start)
    network = network or Conv4((4, 4, 8, 8), fields.get("channels", 3))
    return method(network, image_size=SIZE, recipe="short", **{**SMALL[method], **fields})


def drawn(count=8, size=20) -> torch.Tensor:
    """uint8 (B, 3, H, W)"""
    return torch.from_numpy(shapes.draw(count, size, seed=3)[0]).permute(0, 3, 1, 2).contiguous()


def store(images) -> ImageStore:
    return ImageStore(images, None, (), "drawn", "train", "0")


def snapshot(module):
    """Every tensor and every mode of a module, to compare with later."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return state, [part.training for part in module.modules()]


def unchanged(before, after) -> bool:
    same = before[0].keys() == after[0].keys() and before[1] == after[1]
    return same and all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


# -------------------------------------------------------------------------------------- as printed, on files

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def photographs(place, count, size=112):
    """JPEG files of several shapes, in a folder and in one below it."""
    (place / "more").mkdir(parents=True)
    for i, pixels in enumerate(shapes.draw(count, size, seed=4)[0]):
        picture = Image.fromarray(pixels).resize((size + 10 * (i % 3), size))
        picture.save((place / "more" if i % 4 == 0 else place) / f"{i:03}.jpg", quality=90)


def test_the_few_lines_run_as_printed(tmp_path, monkeypatch):
    photographs(tmp_path / "photos", 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_BAR", "1")
    torch.manual_seed(0)
    drawn_next = models.resnet18(weights=None).state_dict()
    torch.manual_seed(0)
    names = {}
    assert "epochs=100" in SNIPPET
    exec(SNIPPET.replace("epochs=100", "epochs=1"), names)

    network, learner = names["network"], names["learner"]
    assert learner.encoder.network is network
    saved = torch.load(tmp_path / "improved.pt", map_location="cpu", weights_only=True)
    fresh = models.resnet18(weights=None)
    fresh.load_state_dict(saved, strict=True)
    moved = [name for name in saved if not torch.equal(saved[name], drawn_next[name])]
    assert set(drawn_next) - set(moved) == {"fc.weight", "fc.bias"}  # behind the layer; the rest has learnt
    assert all(tensor.isfinite().all() for tensor in saved.values())
    fresh.eval(), network.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # nothing of the wrapping is left in the way
        assert_close(fresh(images), network.cpu()(images))


def test_the_lesson_shows_the_few_lines_as_they_are_tested():
    path = ssl_lessons.records.results_folder().parent.parent / "notebooks" / "10_your_own_images.ipynb"
    if not path.exists():
        pytest.skip("the lesson is not here")
    import nbformat

    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for line in filter(None, SNIPPET.splitlines()):
        assert line == "import torch" or line in text, line


def test_all_that_the_few_lines_name_can_be_imported_from_the_top():
    for name in ("BYOL", "MoCo", "Relational", "SimCLR", "SimSiam", "pretrain", "images", "tap", "judge"):
        assert hasattr(ssl_lessons, name) and name in dir(ssl_lessons)


# -------------------------------------------------------------------------------------------------- the layer


class Nested(nn.Module):
    """Children `features` (with blocks inside) and `classifier`, as in much code outside torchvision."""

    def __init__(self):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(6, 9, 3, 2, 1), nn.BatchNorm2d(9), nn.ReLU())
        self.features = nn.Sequential(first, second)
        self.classifier = nn.Linear(9, 4)

    def forward(self, images):
        return self.classifier(self.features(images).mean(dim=(2, 3)))


@every_method
@pytest.mark.parametrize(
    ("layer", "name", "width"),
    [("features", "features", 9), ("features.1.0", "features.1.0", 9), ("features.0", "features.0", 6)]
    + [(0, "features", 9), (-1, "classifier", 4), (-2, "features", 9)],
)
def test_the_layer_is_found_by_name_and_by_index_at_any_depth(method, layer, name, width):
    network = Nested()
    learner = small(method, network, layer=layer)
    assert learner.encoder.network is network
    assert (learner.encoder.layer, learner.encoder.width) == (name, width)
    assert learner.represent(drawn()).embedding.shape == (8, width)


@pytest.mark.parametrize("layer", ["feature.1", "features.7", "avgpool", 2, -3, 99])
def test_a_layer_that_is_not_there_is_answered_with_those_that_are(layer):
    with pytest.raises(ValueError) as caught:
        small(BYOL, Nested(), layer=layer)
    message = str(caught.value)
    assert str(layer) in message and "features" in message and "classifier" in message
    if isinstance(layer, str):
        assert "features.1.0" in message


def test_resnets_avgpool_is_also_their_last_but_one():
    network = models.resnet18(weights=None)
    assert tap(network, -2, SIZE).layer == "avgpool" == tap(network, "avgpool", SIZE).layer


# --------------------------------------------------------------------------------------------- the projector


@pytest.mark.parametrize("method", [SimCLR, MoCo, BYOL, SimSiam], ids=lambda method: method.__name__)
def test_the_projections_size_and_hidden_size_arrive(method):
    torch.manual_seed(0)
    learner = method(Conv4((4, 4, 8, 8)), None, SIZE, projection_size=12, projection_hidden_size=20)
    linear = [part for part in learner.projector.modules() if isinstance(part, nn.Linear)]
    assert linear[0].in_features == 8 and linear[-1].out_features == 12
    assert len(linear) > 1 and {part.out_features for part in linear[:-1]} == {20}
    assert learner.represent(drawn()).projection.shape == (8, 12)
    assert learner(drawn()).isfinite()


@pytest.mark.parametrize("method", [SimCLR, MoCo, BYOL, SimSiam], ids=lambda method: method.__name__)
def test_either_size_of_the_projection_alone_leaves_the_other(method):
    wide = small(method, projection_size=10).recipe.head
    deep = small(method, projection_hidden_size=24).recipe.head
    usual = SMALL[method]["head"]
    assert wide == (*usual[:-1], 10) and deep == (*[24] * (len(usual) - 1), usual[-1])


def test_relational_reasoning_has_no_projector_and_says_so():
    with pytest.raises(ValueError, match="no projector.*projection_size"):
        small(Relational, projection_size=8)


@every_method
def test_an_unknown_field_is_answered_with_the_known_ones(method):
    with pytest.raises(ValueError, match=r"'momentun'.*weight_decay"):
        small(method, momentun=0.9)


# ---------------------------------------------------------------------------------------------- BYOL's target


def moved_target(momentum, schedule, progress):
    """(before, online, after) of one target weight around `after_step`, its online weight moved by hand."""
    learner = small(BYOL, momentum=momentum, momentum_schedule=schedule)
    before = [
        p.clone() for p in [*learner.target_encoder.parameters(), *learner.target_projector.parameters()]
    ]
    online = [*learner.encoder.parameters(), *learner.projector.parameters()]
    with torch.no_grad():
        for parameter in online:
            parameter.add_(1.0)
    learner.after_step(progress)
    after = [*learner.target_encoder.parameters(), *learner.target_projector.parameters()]
    return zip(before, online, after, strict=True)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_target_follows_with_a_fixed_or_a_scheduled_momentum(schedule, progress):
    fixed = schedule == "constant"
    expected = 0.99 if fixed else 1 - (1 - 0.99) * (math.cos(math.pi * progress) + 1) / 2
    assert byol.momentum_at(0.99, progress, schedule) == pytest.approx(expected, abs=1e-12)
    for before, online, after in moved_target(0.99, schedule, progress):
        assert_close(after, expected * before + (1 - expected) * online)


def test_a_momentum_given_without_a_schedule_means_what_its_recipe_says():
    learner = small(BYOL, momentum=0.9)
    assert learner.recipe.momentum == 0.9
    assert learner.recipe.momentum_schedule == byol.RECIPES["short"].momentum_schedule


def test_without_momentum_the_target_is_the_online_network_with_stop_gradient():
    learner = small(BYOL, momentum=None).train()
    torch.manual_seed(3)
    one, two = learner.augment(drawn())
    torch.manual_seed(4)
    loss = learner([one, two]).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in learner.named_parameters()}  # each has one
    learner.zero_grad(set_to_none=True)

    def towards(view, other):  # SimSiam's rule, algorithm 1 of its paper, with BYOL's 2 − 2·cosine
        prediction = learner.predictor(learner.projector(learner.encoder(view)))
        with torch.no_grad():
            target = learner.projector(learner.encoder(other))
        return (2 - 2 * F.cosine_similarity(prediction, target, dim=1)).mean()

    by_hand = towards(one, two) + towards(two, one)
    by_hand.backward()
    assert_close(loss, by_hand)
    for name, parameter in learner.named_parameters():
        assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    before = snapshot(learner)
    learner.after_step(0.5)  # there is nothing that follows
    assert unchanged(before, snapshot(learner))


# --------------------------------------------------------------------------------- augmentations of one's own


def shrink(images):
    return F.interpolate(images, SIZE, mode="bilinear", antialias=True)


def mirrored(images):
    return shrink(images).flip(-1)


@every_method
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"augment": shrink}, [shrink, shrink]),
        ({"augment2": mirrored}, [None, mirrored]),
        ({"augment": shrink, "augment2": mirrored}, [shrink, mirrored]),
    ],
    ids=["both", "second", "different"],
)
def test_a_function_of_ones_own_makes_either_view(method, given, expected):
    learner = small(method, **given)
    images = drawn()
    made = learner.augment(images)
    assert len(made) == (3 if method is Relational else 2)
    for i, view in enumerate(made):
        assert view.shape == (8, 3, SIZE, SIZE) and view.dtype == torch.float32
        rule = expected[i % 2]  # of K views, every second is the second's
        if rule is None:
            assert not torch.allclose(view, normalize(mirrored(images.float() / 255)), atol=1e-2)
        else:
            assert_close(view, normalize(rule(images.float() / 255)))
    assert learner(images).isfinite()


def test_pretrain_uses_the_functions_too():
    seen = []

    def watched(images):
        seen.append((images.dtype, images.min().item() >= 0, images.max().item() <= 1, tuple(images.shape)))
        return shrink(images)

    pretrain(small(SimCLR, augment2=watched), store(drawn(16)), epochs=1, batch_size=8, **CPU)
    # two batches, and before the second one eight calls on equal images: does it draw for each of them?
    assert seen == [(torch.float32, True, True, (8, 3, 20, 20))] * (2 + 8)


@every_method
def test_kornias_augmentations_fit(method):
    K = pytest.importorskip("kornia.augmentation", reason="kornia (an extra, `peers`) is not installed")
    crop = K.RandomResizedCrop((SIZE, SIZE), scale=(0.5, 1.0))
    one = nn.Sequential(crop, K.RandomHorizontalFlip(), K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8))
    two = nn.Sequential(crop, K.RandomGrayscale(p=1.0))
    learner = small(method, augment=one, augment2=two)
    made = learner.augment(drawn())
    grey = unnormalize(made[1])
    assert_close(grey[:, 0], grey[:, 1], atol=1e-5, rtol=0)
    assert (unnormalize(made[0])[:, 0] - unnormalize(made[0])[:, 1]).abs().max() > 0.05
    learner(drawn()).backward()
    assert all(p.grad.isfinite().all() for p in learner.encoder.parameters())


def to_bytes(images):
    return shrink(images) * 255


def normalised(images):
    return normalize(shrink(images))


def whole(images):
    return images


def none(images):
    return None


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (whole, r"whole.*\(8, 3, 20, 20\).*\(8, 3, 16, 16\).*crop or resize.*16"),
        (to_bytes, r"to_bytes.* to 255; .*\[0, 1\]"),
        (normalised, r"normalised.*\[0, 1\].*normalis"),
        (none, r"none.*NoneType.*\(8, 3, 16, 16\)"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_with_the_way_out(function, words, second):
    learner = small(BYOL, **{"augment2" if second else "augment": function})
    with pytest.raises(ValueError, match=words):
        learner(drawn())


# --------------------------------------------------------------------------------- embeddings and projections


@every_method
def test_represent_gives_embeddings_and_projections_and_touches_nothing(method):
    learner = small(method).train()
    learner.encoder.network.blocks[0].eval()  # a user's own choice
    before = snapshot(learner)
    embedding, projection = learner.represent(drawn())
    assert embedding.shape == (8, 8) == (8, learner.encoder.width)
    assert projection.shape == (8, 8) and not (embedding.requires_grad or projection.requires_grad)
    assert unchanged(before, snapshot(learner))
    again = learner.represent(drawn())
    assert torch.equal(again.embedding, embedding) and torch.equal(again.projection, projection)
    one = learner.represent(drawn()[:1])  # eval mode: company makes no difference, and one is enough
    assert_close(one.embedding, embedding[:1])
    assert_close(learner.represent(drawn().float() / 255).embedding, embedding)


# -------------------------------------------------------------------------------------- a loop of one's own


@every_method
def test_a_loop_of_ones_own_learns(method):
    learner = small(method)
    target = [p.clone() for p in learner.parameters() if not p.requires_grad]
    before = snapshot(learner.encoder.network)[0]
    images = drawn(16)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        loss = learner(images) if step % 2 else learner.loss(images)
        assert loss.shape == () and loss.requires_grad
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step()
        losses.append(loss.item())
        assert math.isfinite(losses[-1]), f"step {step}"
    first, last = sum(losses[5:10]), sum(losses[-5:])  # MoCo's first steps meet an empty queue
    assert last < first
    after = learner.encoder.network.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(moved) >= {name for name, _ in learner.encoder.network.named_parameters()}
    follows = [p for p in learner.parameters() if not p.requires_grad]
    if method in (MoCo, BYOL):
        assert follows and not any(torch.equal(a, b) for a, b in zip(target, follows, strict=True))


@every_method
def test_uint8_and_floats_in_0_1_give_the_same_views(method):
    learner, images = small(method).train(), drawn()
    torch.manual_seed(7)
    ours = learner.augment(images)
    torch.manual_seed(7)
    theirs = learner.augment(images.float() / 255)
    assert len(ours) == len(theirs) == len(learner.policies)
    for one, two in zip(ours, theirs, strict=True):
        assert_close(one, two, atol=1e-5, rtol=0)
    twin = copy.deepcopy(learner)
    torch.manual_seed(7)
    loss = learner(images)
    torch.manual_seed(7)
    assert_close(twin(images.float() / 255), loss)


@every_method
def test_a_batch_given_to_the_learner_is_its_own_views_given_as_views(method):
    learner, images = small(method).train(), drawn()
    twin = copy.deepcopy(learner)
    torch.manual_seed(9)
    loss = learner(images)
    torch.manual_seed(9)
    objective = twin(twin.augment(images))
    assert torch.equal(loss, objective.loss)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    one, two = (learner.augment(images, generator) for generator in generators)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])  # each view has a draw of its own


@pytest.mark.parametrize(
    "images", [drawn().int(), drawn().float(), drawn().float() / 127.5 - 1, drawn()[0], drawn()[:, :2]],
    ids=["int32", "0..255", "-1..1", "one image", "two channels"],
)  # fmt: skip
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="give"):
        small(SimCLR)(images)


@every_method
def test_pretrain_is_the_same_loop(method):
    """A loop of one's own, with the same seed, order, views and rate, ends at the same weights."""
    settings = {"schedule": "constant", "warmup": 0.0, "batch_size": 8, "lr_batch": None, "predictor_lr": 1.0}
    by_pretrain, by_hand = (small(method, **settings) for _ in range(2))
    photos = store(drawn(24))
    pretrain(by_pretrain, photos, epochs=2, seed=5, **CPU)

    torch.manual_seed(5)
    by_hand.to(memory_format=torch.channels_last).train()
    by_hand.run_steps = 6  # of BYOL's target, whose memory is a share of the run
    optimizer, generator = build_optimizer(by_hand), torch.Generator().manual_seed(5)
    for epoch in range(2):
        for step, rows in enumerate(torch.randperm(24, generator=generator).split(8)):
            loss = by_hand(by_hand.augment(photos.batch(rows), generator)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            by_hand.after_step((3 * epoch + step + 1) / 6)
    theirs = by_pretrain.state_dict()
    for name, tensor in by_hand.state_dict().items():
        assert_close(tensor, theirs[name], msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------------------------------------- any network


class Own(nn.Module):
    """A user's network: no BatchNorm, no names that torchvision uses, a dictionary as its output."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"eye": nn.Conv2d(3, 12, 4, 4), "mind": nn.Conv2d(12, 7, 2)})
        self.say = nn.Linear(7, 2)

    def forward(self, images):
        seen = torch.relu(self.body["mind"](torch.relu(self.body["eye"](images))))
        return {"classes": self.say(seen.mean(dim=(2, 3)))}


NETWORKS = {  # how it is built, the layer, its width
    "resnet18": (lambda: models.resnet18(weights=None), "avgpool", 512),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(weights=None), "avgpool", 576),
    "convnext_tiny": (lambda: models.convnext_tiny(weights=None), "features.3", 192),
    "vit_b_16": (lambda: models.vit_b_16(weights=None, image_size=32), "encoder.ln", 768),
    "own": (Own, "body.mind", 7),
}


PAIRS = [(BYOL, name) for name in NETWORKS] + [
    (method, name) for method in (SimCLR, MoCo, Relational, SimSiam) for name in ("mobilenet_v3_small", "own")
]
PAIRS += [(SimSiam, "resnet18"), (MoCo, "convnext_tiny")]


@pytest.mark.parametrize(
    ("method", "name"), PAIRS, ids=[f"{method.__name__}-{name}" for method, name in PAIRS]
)
def test_any_network_takes_a_step_and_its_weights_load_into_a_plain_one(method, name, tmp_path):
    torch.manual_seed(0)
    build, layer, width = NETWORKS[name]
    network = build()
    untrained = {n: p.detach().clone() for n, p in network.named_parameters()}
    fields = {**SMALL[method], **({"views": 2} if method is Relational else {})}
    learner = method(network, layer, 32, "short", **fields)
    assert learner.encoder.network is network and learner.encoder.width == width
    learner.train()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    learner(drawn(4, 36)).backward()
    optimizer.step()
    learner.after_step()
    reached = {n for n, p in network.named_parameters() if p.grad is not None}
    assert reached and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert learner.represent(drawn(2, 36)).embedding.shape == (2, width)

    torch.save(network.state_dict(), tmp_path / "improved.pt")
    with torch.device("meta"):  # without weights of its own: all of them come from the file
        plain = build()
    saved = torch.load(tmp_path / "improved.pt", map_location="cpu", weights_only=True)
    plain.load_state_dict(saved, strict=True, assign=True)
    moved = {n for n, t in plain.named_parameters() if not torch.equal(t, untrained[n])}
    assert moved and moved <= reached
    assert not any(n.startswith(("classifier", "heads", "fc", "say")) for n in moved)  # behind the layer


# ------------------------------------------------------------------------------------- one channel, one image


def grey(count=8, size=20):
    """uint8 (B, 1, H, W)"""
    return drawn(count, size).float().mean(dim=1, keepdim=True).to(torch.uint8)


@every_method
@pytest.mark.parametrize("images", [grey(16), drawn(16)], ids=["grey store", "colour store"])
def test_one_channel_networks_learn_from_grey_and_from_colour_images(method, images):
    learner = small(method, channels=1)
    views = learner.augment(images[:4])
    assert all(view.shape == (4, 1, SIZE, SIZE) for view in views)
    assert learner.represent(images[:4]).embedding.shape == (4, 8)
    before = snapshot(learner.encoder.network)[0]
    record = pretrain(learner, store(images), epochs=1, batch_size=8, **CPU)
    assert math.isfinite(record["history"][0]["loss"])
    after = learner.encoder.network.state_dict()
    assert not torch.equal(before["blocks.0.0.weight"], after["blocks.0.0.weight"])


def test_a_one_channel_view_is_the_luma_of_the_colours_for_every_augmentation():
    """Which is what judging sees: red alone would be another picture."""
    images = drawn(4, SIZE)
    luma = (images.float() / 255 * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    own = small(SimCLR, channels=1, augment=whole).augment(images)[0]
    same = small(SimCLR, channels=1, augment=whole).augment(luma.mul(255).round().to(torch.uint8))[0]
    assert_close(own, same, atol=0.02, rtol=0)


def test_three_channel_networks_take_grey_images_too():
    learner = small(SimCLR)
    assert learner.augment(grey())[0].shape == (8, 3, SIZE, SIZE)
    assert learner(grey()).isfinite()


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"{channels}.*3 .*1 "):
        SimCLR(Conv4((4, 4, 8, 8), channels or 3), image_size=SIZE, channels=channels)


@pytest.mark.parametrize("method", [BYOL, SimSiam], ids=lambda method: method.__name__)
def test_a_batch_of_one_is_refused_where_batchnorm_would_fail(method):
    learner = small(method).train()
    with pytest.raises(ValueError, match="batch of one .*BatchNorm.*at least 2"):
        learner(drawn(1))
    with pytest.raises(ValueError, match="batch of one .*BatchNorm.*at least 2"):
        pretrain(learner, store(drawn(3)), epochs=1, batch_size=1, **CPU)


def test_a_batch_of_one_is_refused_where_the_encoders_batchnorm_would_fail():
    """MoCo's head has no BatchNorm, but ResNet-18 has shrunk 32 pixels to one position by its last stage."""
    learner = MoCo(models.resnet18(weights=None), "avgpool", 32, "short", **SMALL[MoCo])
    with pytest.raises(ValueError, match="batch of one .*BatchNorm.*at least 2"):
        learner(drawn(1, 36))


@pytest.mark.parametrize(
    ("method", "words"), [(SimCLR, "one image has no negatives.*2 images"), (Relational, "1 images.*give 2")]
)
def test_a_batch_of_one_has_no_other_image_to_compare_with(method, words):
    with pytest.raises(ValueError, match=words):
        small(method, Own(), layer="body.mind")(drawn(1))


def test_a_batch_of_one_is_taken_where_nothing_needs_another():
    learner = small(BYOL, Own(), layer="body.mind", normalisation="none").train()
    assert learner(drawn(1)).isfinite()
    learner = small(MoCo, Own(), layer="body.mind").train()
    assert learner(drawn(1)).isfinite()


def test_a_folder_of_grey_photographs_is_learnt_from_in_one_channel(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    (tmp_path / "x-rays").mkdir()
    for i, pixels in enumerate(grey(8, 24)[:, 0].numpy()):
        Image.fromarray(pixels).save(tmp_path / "x-rays" / f"{i}.png")
    photos = folder(tmp_path / "x-rays", 20, progress=False)
    assert len(photos) == 8 and photos.labels is None
    record = pretrain(small(BYOL, channels=1), photos, epochs=1, batch_size=4, **CPU)
    assert math.isfinite(record["history"][0]["loss"])
    assert replace(photos).images.shape[1] in (1, 3)
    assert networks.tap(Conv4((4, 4, 8, 8), 1), None, SIZE, channels=1).width == 8
