"""Networks as people bring them, losses under half precision, recipes out of range, and loops that forget a
part: each ends in the right number or in one sentence."""

import copy
import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from ssl_lessons import BYOL, MoCo, Relational, SimCLR, SimSiam, diagnose, networks, pretrain
from ssl_lessons.devices import TrainingError
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Recipe
from ssl_lessons.methods.byol import byol_loss
from ssl_lessons.methods.moco import info_nce
from ssl_lessons.methods.recipes import BYOL as BYOLS
from ssl_lessons.methods.recipes import MOCO, RELATIONAL, SIMCLR, SIMSIAM
from ssl_lessons.methods.relational import RelationHead, focal_bce
from ssl_lessons.methods.simclr import nt_xent
from ssl_lessons.methods.simsiam import negative_cosine
from ssl_lessons.networks import tap
from ssl_lessons.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = {"device": "cpu", "precision": "fp32", "progress": "none"}
METHODS = (SimCLR, MoCo, Relational, BYOL, SimSiam)
SMALL = {MoCo: {"queue": 8}, Relational: {"views": 2}}
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return networks.slim_resnet((1, 1, 1, 1), 8)  # named as torchvision's: avgpool, fc


def pixels(count=8, size=20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def store(count=16) -> ImageStore:
    return ImageStore(pixels(count), None, (), "noise", "train", "0")


def method(kind, network=None, **fields):
    torch.manual_seed(0)
    network = networks.Conv4((4, 4, 8, 8)) if network is None else network
    return kind(network, image_size=16, recipe="short", **{**SMALL.get(kind, {}), **fields})


def told(call) -> str:
    """The warnings of a call, as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return "\n".join(str(warning.message) for warning in caught)


# ------------------------------------------------------------------------------------------ what is around it


def compiled_in_place(network):
    network.compile()
    return network


def compiled_in_part(network):
    network.layer2 = torch.compile(network.layer2)
    return network


AROUND = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "both": lambda network: torch.compile(nn.DataParallel(network)),
    "net.compile()": compiled_in_place,
    "a compiled part": compiled_in_part,
    "AveragedModel": AveragedModel,
}


def check_unwrapped(fault, wrapped):
    plain = resnet().eval()
    learner = method(MoCo, wrapped)
    encoder = learner.encoder.cpu()  # where there is a GPU, DataParallel has taken the network there
    fault("wrapped networks").right(encoder.layer == "avgpool" and encoder.width == 64, message=str(encoder))
    fault("wrapped networks").right(encoder.network.state_dict().keys() == plain.state_dict().keys())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = tap(plain, "avgpool", 16)(images)
        fault("wrapped networks").right(torch.equal(encoder.eval()(images), expected))


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_network_is_taken_off(fault, around):
    check_unwrapped(fault, AROUND[around](resnet()))


def test_distributed_data_parallel_is_taken_off(fault):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        check_unwrapped(fault, nn.parallel.DistributedDataParallel(resnet()))
    finally:
        dist.destroy_process_group()


# -------------------------------------------------------------------------------- a classifier's output, maps


def vit():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 1}
    return torchvision.models.VisionTransformer(**sizes, hidden_dim=12, mlp_dim=16)


def swin(width=16):
    return torchvision.models.SwinTransformer([2, 2], width, [1, 1], [2, 2], [4, 4])


def timm_network(name):
    timm = pytest.importorskip("timm")
    return timm.create_model(name)


CLASSIFIERS = {
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(), "'classifier.1'", "'features'"),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(), "'classifier.3'", "'classifier.1'"),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(), "'fc'", "'conv5'"),
    "vision transformer": (vit, "'heads.head'", "'encoder'"),
    "swin": (swin, "'head'", "'flatten'"),
    "timm densenet": (lambda: timm_network("densenet121"), "'classifier'", "'global_pool'"),
    "a wrapped ResNet": (lambda: nn.Sequential(nn.Identity(), resnet()), "'1.fc'", "'1.avgpool'"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_output_is_said(fault, name):
    build, layer, before = CLASSIFIERS[name]
    network = build()
    words = told(lambda: tap(network, image_size=32))
    fault("classifier as features").right(layer in words and f"layer={before}" in words, message=words)
    quiet = told(lambda: tap(network, before.strip("'"), image_size=32))  # the way out that was named
    fault("classifier as features").right(not quiet, message=quiet)


@pytest.mark.parametrize("build", [networks.conv4, resnet, lambda: networks.build("colours", 32)])
def test_features_are_no_classifier(fault, build):
    fault("classifier as features").right(not told(lambda: tap(build(), image_size=32)))


class Maps(nn.Module):
    """A convolution's map (B, 16, h, w) with its axes in another order: 16 features for 16 x 16 positions."""

    def __init__(self, order, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride, padding=1)
        self.order, self.last = order, nn.Identity()

    def forward(self, images):
        return self.last(self.order(self.conv(images)))


ORDERS = {
    "(B, D, h, w)": lambda maps: maps,
    "(B, h, w, D)": lambda maps: maps.permute(0, 2, 3, 1),
    "(B, D, T)": lambda maps: maps.flatten(2),
    "(B, T, D)": lambda maps: maps.flatten(2).mT,
    "(B, D, 1, h, w)": lambda maps: maps[:, :, None],
    "(B, 1, h, w, D)": lambda maps: maps.permute(0, 2, 3, 1)[:, None],
}


@pytest.mark.parametrize("size", [16, 32], ids=["as many positions as features", "more"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_mean_is_over_positions_wherever_the_features_lie(fault, order, size):
    network = Maps(ORDERS[order])
    encoder, images = tap(network, "last", size), torch.randn(3, 3, size, size)
    expected = network.conv(images).mean(dim=(2, 3))
    right = encoder.width == 16 and torch.allclose(encoder(images), expected, atol=1e-5)
    fault("layout of maps").right(right, message=str(encoder.axis))


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.3", "norm", "permute", "avgpool"])
@pytest.mark.parametrize("width", [16, 8])
def test_a_swin_transformers_maps(fault, layer, width):
    network, expected = swin(width), width if layer[-1] in "01" else 2 * width
    encoder = tap(network, layer, 32)
    fault("layout of maps").right(encoder.width == expected == encoder(torch.randn(2, 3, 32, 32)).shape[1])


def test_a_fixed_sizes_tokens(fault):
    fault("layout of maps").right(tap(vit(), "encoder.layers.encoder_layer_0", 32).width == 12)


# ------------------------------------------------------------------------------------------ refused in a word


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, images):
        return self.make(self.conv(images))


def in_inference_mode():
    with torch.inference_mode():
        return resnet()


def partly_double():
    network = resnet()
    network.layer3.double()
    return network


REFUSED = {
    "float16": (lambda: resnet().half(), ("conv1.weight", "float16", "network.float()")),
    "bfloat16": (lambda: resnet().bfloat16(), ("bfloat16", "network.float()")),
    "float64": (lambda: resnet().double(), ("float64", "network.float()")),
    "a layer in float64": (partly_double, ("layer3.0.conv1.weight", "float64")),
    "complex": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4, dtype=torch.cfloat)), "complex64"),
    "meta": (lambda: resnet().to("meta"), ("meta", "real device")),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()), ("0.weight", "one batch")),
    "inference mode": (in_inference_mode, "inference mode"),
    "a name": (lambda: "resnet18", ("'resnet18'", "networks.build")),
    "a class": (lambda: networks.Conv4, "nn.Module"),
    "None": (lambda: None, "nn.Module"),
    "another size": (lambda: torchvision.models.VisionTransformer(64, 8, 1, 1, 12, 16), ("64", "image_size")),
    "one channel": (lambda: networks.Conv4((4, 4, 4, 4), 1), ("(3, 16, 16)", "channels")),
    "a map that is too small": (lambda: nn.Sequential(*[nn.MaxPool2d(4) for _ in range(3)]), "image_size"),
    "two arguments": (lambda: nn.Bilinear(3, 3, 3), "(3, 16, 16)"),
    "whole numbers": (lambda: Returns(lambda x: x.argmax(dim=1)), "int64"),
    "a tuple": (lambda: Returns(lambda x: (x, x)), "tuple"),
    "a dictionary": (lambda: Returns(lambda x: {"x": x}), "dict"),
    "one number an image": (lambda: Returns(lambda x: x.mean(dim=(1, 2, 3))), "not a row"),
    "one row for all": (lambda: Returns(lambda x: x.mean(dim=(0, 2))), "not a row"),
    "the batch in second place": (lambda: Returns(lambda x: x.flatten(2).permute(2, 0, 1)), "not a row"),
    "windows in place of images": (lambda: Returns(lambda x: x.reshape(-1, 7, 7, 4)), "not a row"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_does_not_fit_is_refused_before_the_first_step(fault, name):
    build, words = REFUSED[name]
    with fault("networks that do not fit").refused(ValueError, says=words):
        method(SimCLR, build()) if build() is not None else SimCLR()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_default_dtype_is_refused(fault, dtype):
    network = resnet()
    torch.set_default_dtype(dtype)
    try:
        with fault("networks that do not fit").refused(
            ValueError, says=("default dtype", "set_default_dtype")
        ):
            SimCLR(network, image_size=16)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("layer", ["nowhere", 99, -99, "", 1.5])
def test_a_layer_that_is_not_there_is_answered_with_those_that_are(fault, layer):
    with fault("networks that do not fit").refused(ValueError, says=(repr(layer), "layer1", "fc")):
        tap(resnet(), layer, 16)


# ---------------------------------------------------------------------------------------- gradients, freezing


class Blocked(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.conv, self.block = nn.Conv2d(3, 8, 3), block

    def forward(self, images):
        if self.block == "no_grad":
            with torch.no_grad():
                return self.conv(images).mean(dim=(2, 3))
        return self.conv(images).mean(dim=(2, 3)).detach()


@every_method
@pytest.mark.parametrize("block", ["no_grad", "detach"])
def test_a_network_without_gradients_is_refused(fault, kind, block):
    with fault("gradients switched off").refused(ValueError, says=("without gradient", block)):
        pretrain(method(kind, Blocked(block)), store(), epochs=1, batch_size=8, **CPU)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_without_gradients_is_refused(fault, mode):
    learner = method(SimCLR)
    with mode(), fault("gradients switched off").refused(TrainingError, says="gradients are switched off"):
        pretrain(learner, store(), epochs=1, batch_size=8, **CPU)


def test_a_frozen_encoder_is_refused_and_a_part_is_not(fault):
    with fault("gradients switched off").refused(TrainingError, says="frozen"):
        build_optimizer(method(BYOL, resnet().requires_grad_(False)))
    network = resnet()
    network.conv1.requires_grad_(False)
    before, other = network.conv1.weight.clone(), network.layer1[0].conv1.weight.clone()
    pretrain(method(BYOL, network), store(), epochs=2, batch_size=8, **CPU)
    moved = not torch.equal(network.layer1[0].conv1.weight, other)
    fault("gradients switched off").right(torch.equal(network.conv1.weight, before) and moved)


@every_method
def test_frozen_batchnorms_stay_frozen(fault, kind):
    network = resnet()
    for norm in (network.bn1, network.layer2[0].bn1):
        norm.eval()
    before = copy.deepcopy(network.state_dict())
    pretrain(method(kind, network), store(), epochs=1, batch_size=8, monitor=lambda encoder: {}, **CPU)
    after = network.state_dict()
    still = [
        torch.equal(before[f"{n}.running_mean"], after[f"{n}.running_mean"]) for n in ("bn1", "layer2.0.bn1")
    ]
    moves = not torch.equal(before["layer1.0.bn1.running_mean"], after["layer1.0.bn1.running_mean"])
    fault("frozen BatchNorm").right(all(still) and moves and not network.bn1.training)


def test_a_network_at_rest_as_a_whole_trains(fault):
    network = resnet().eval()  # as loaded
    learner = method(SimCLR, network).train()
    fault("frozen BatchNorm").right(all(part.training for part in learner.modules()))


OLD = {
    "weight_norm": lambda conv: nn.utils.weight_norm(conv),
    "spectral_norm": lambda conv: nn.utils.spectral_norm(conv),
    "pruned": lambda conv: nn.utils.prune.random_unstructured(conv, "weight", 0.3),
    "parametrized": lambda conv: nn.utils.parametrizations.weight_norm(conv),
}


@pytest.mark.parametrize("kind", [MoCo, BYOL], ids=["MoCo", "BYOL"])
@pytest.mark.parametrize("old", OLD)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_computed_weights_can_be_averaged(fault, kind, old):
    from torch.nn.utils import prune  # noqa: F401  nn.utils.prune is loaded when it is asked for

    network = nn.Sequential(OLD[old](nn.Conv2d(3, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    record = pretrain(method(kind, network, momentum=0.5), store(), epochs=2, batch_size=8, **CPU)
    fault("computed weights").right(math.isfinite(record["history"][-1]["loss"]))


class Volume(nn.Module):
    """Its weights have five dimensions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 8, 3, padding=1)

    def forward(self, images):
        return self.conv(images[:, None]).mean(dim=(2, 3, 4))


@every_method
def test_weights_of_five_dimensions_train(fault, kind):
    network = Volume()
    before = network.conv.weight.clone()
    pretrain(method(kind, network), store(), epochs=2, batch_size=8, **CPU)
    fault("five dimensions").right(not torch.equal(network.conv.weight, before))


# ------------------------------------------------------------------------------------------------- the losses


def unit(count, width=8, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


Q, KEY, QUEUE = unit(4), unit(4, seed=1), unit(9, seed=2)
SCORES, TARGETS = (
    8 * torch.randn(6, generator=torch.Generator().manual_seed(3)),
    torch.tensor([1, 0, 1, 0, 1, 0.0]),
)
LOSSES = {
    "info_nce": (lambda *x: info_nce(*x, 0.01), (Q, KEY, QUEUE)),
    "nt_xent": (lambda *x: nt_xent(*x, 0.01), (Q, KEY)),
    "byol_loss": (byol_loss, (Q, KEY)),
    "negative_cosine": (negative_cosine, (Q, KEY)),
    "focal_bce": (focal_bce, (SCORES, TARGETS)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_under_half_precision(fault, name, dtype):
    loss, given = LOSSES[name]
    half = [tensor.to(dtype) for tensor in given]
    exact = loss(*[tensor.double() for tensor in half])
    for value in (loss(*half), loss(*[tensor.float() for tensor in half])):
        fault("half precision").right(
            value.dtype == torch.float32 and torch.isclose(value, exact.float(), rtol=1e-5)
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fault("half precision").right(torch.isclose(loss(*half), exact.float(), rtol=1e-5))


SHAPES = {
    "one row": lambda z: z[:1],
    "one column": lambda z: z[:, :1],
    "another width": lambda z: z[:, :-1],
    "transposed": lambda z: z.T,
    "a vector": lambda z: z[0],
    "three dimensions": lambda z: z[:, None],
    "nothing": lambda z: z[:0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["info_nce", "nt_xent", "byol_loss", "negative_cosine"])
def test_losses_do_not_broadcast(fault, name, shape):
    loss, (first, second, *more) = LOSSES[name]
    with fault("shapes of a loss").refused(ValueError, says=(str(tuple(first.shape)), "expected")):
        loss(first, SHAPES[shape](second), *more)


@pytest.mark.parametrize(
    "call",
    [
        lambda: info_nce(Q, KEY, QUEUE[:, :1], 0.2), lambda: info_nce(Q, KEY, QUEUE[0], 0.2),
        lambda: info_nce(Q, KEY, QUEUE[:0], 0.2), lambda: focal_bce(SCORES, TARGETS[:1]),
        lambda: focal_bce(SCORES[:, None], TARGETS), lambda: focal_bce(SCORES[:0], TARGETS[:0]),
        lambda: byol_loss(Q[:0], KEY[:0]), lambda: nt_xent(Q[None], KEY[None], 0.2),
    ],
)  # fmt: skip
def test_neither_do_their_other_arguments(fault, call):
    with fault("shapes of a loss").refused(ValueError, says="expected"):
        call()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_refuse_what_is_not_finite(fault, name, bad):
    loss, given = LOSSES[name]
    for i in range(len(given)):
        broken = [tensor.clone() for tensor in given]
        broken[i].view(-1)[3] = bad
        with fault("not finite").refused(ValueError, says="NaN or infinite"):
            loss(*broken)


@pytest.mark.parametrize("bad", [-1.0, 2.0, 7.0])
def test_targets_out_of_range_are_refused(fault, bad):
    with fault("labels out of range").refused(ValueError, says=("targets", "[0, 1]")):
        focal_bce(SCORES, torch.full_like(SCORES, bad))


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_temperatures_out_of_range_are_refused(fault, temperature):
    for call in (lambda: nt_xent(Q, KEY, temperature), lambda: info_nce(Q, KEY, QUEUE, temperature)):
        with fault("labels out of range").refused(ValueError, says=("temperature", "above 0")):
            call()


@pytest.mark.parametrize(
    "figure", [diagnose.effective_rank, diagnose.uniformity, lambda z: diagnose.alignment(z, z)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_of_collapse_refuse_what_is_not_finite(fault, figure, bad):
    z = unit(9)
    z[3, 2] = bad
    with fault("not finite").refused(ValueError, says="NaN or infinite"):
        figure(z)


@every_method
def test_views_that_do_not_fit_are_refused(fault, kind):
    learner, view = method(kind), torch.randn(4, 3, 16, 16)
    for views in ([view], [view] * 9, [view, view[:2]], [view, view[..., :8]]):
        with fault("shapes of a loss").refused(ValueError, says="views are"):
            learner(views)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, 1.5])
def test_images_out_of_range_are_refused(fault, bad):
    images = torch.rand(4, 3, 20, 20)
    images[1, 2, 3, 4] = bad
    with fault("not finite").refused(ValueError, says="floats in [0, 1]"):
        method(SimCLR)(images)


def test_a_heads_scores_are_the_same_under_autocast_as_losses_see_them(fault):
    head, features = RelationHead(8, 16), torch.randn(6, 8)
    first, second = torch.arange(5), torch.arange(1, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head.score(features, first, second)
    loss = focal_bce(scores, TARGETS[:5])
    fault("half precision").right(loss.dtype == torch.float32 and loss.isfinite())


# ------------------------------------------------------------------------------------------------ the recipes

VALUES = [
    (SIMCLR, "lr", (0, -1, math.nan, math.inf, "abc", None, True)),
    (SIMCLR, "lr_batch", (0, -256, 2.5)),
    (SIMCLR, "sgd_momentum", (-0.1, 1.5)),
    (SIMCLR, "weight_decay", (-1e-4, math.nan)),
    (SIMCLR, "warmup", (-1, math.inf)),
    (SIMCLR, "final_lr", (-0.1, 2)),
    (SIMCLR, "batch_size", (0, -8, 2.5)),
    (SIMCLR, "epochs", (0, -3)),
    (SIMCLR, "optimizer", ("lamb", 3)),
    (SIMCLR, "schedule", ("linear", None)),
    (SIMCLR, "temperature", (0, -1, math.nan)),
    (SIMCLR, "head", ((0,), (-8, 8), ("wide",), 128, (2.5,), None, (True,))),
    (SIMCLR, "head_norm", ("yes", 1)),
    (SIMCLR, "policy", ("simclr", None, 3)),
    (MOCO, "queue", (0, -1, 1.5)),
    (MOCO, "momentum", (-0.1, 1.1, math.nan, None)),
    (MOCO, "splits", (0, -8)),
    (RELATIONAL, "views", (1, 0, -2)),
    (RELATIONAL, "hidden", (0, None)),
    (RELATIONAL, "alpha", (-0.5, 1.5)),
    (RELATIONAL, "gamma", (-2, math.inf)),
    (BYOLS, "momentum", (-0.1, 1.1)),
    (BYOLS, "lag", (0.0, -0.1, 1.5)),
    (BYOLS, "momentum_schedule", ("linear",)),
    (BYOLS, "normalisation", ("layer",)),
    (BYOLS, "predictor_hidden", (0, -1)),
    (SIMSIAM, "predictor_lr", (-1, math.nan)),
    (SIMSIAM, "predictor_weight_decay", (-1,)),
]


@pytest.mark.parametrize(
    ("recipes", "field", "values"), VALUES, ids=lambda value: value if type(value) is str else ""
)
def test_a_recipe_refuses_values_out_of_range_however_they_come(fault, recipes, field, values):
    recipe = recipes["short"]
    for value in values:
        for call in (recipe.override, lambda **fields: replace(recipe, **fields)):
            with fault("fields of a recipe").refused(ValueError, says=(field, repr(value), "must be")):
                call(**{field: value})


@pytest.mark.parametrize(
    ("recipes", "field", "value", "expected"),
    [
        (SIMCLR, "lr", "1e-3", 1e-3), (SIMCLR, "epochs", 3.0, 3), (SIMCLR, "lr_batch", None, None),
        (SIMCLR, "head", [8, 8], (8, 8)), (SIMCLR, "head", (None,), (None,)), (SIMCLR, "head", (), ()),
        (BYOLS, "momentum", None, None), (BYOLS, "lag", 1.0, 1.0), (MOCO, "momentum", 1, 1.0),
        (MOCO, "queue", "1e2", 100), (SIMSIAM, "predictor_lr", 0, 0.0), (SIMCLR, "warmup", 0, 0.0),
    ],
)  # fmt: skip
def test_a_recipe_takes_values_at_the_edge(fault, recipes, field, value, expected):
    found = getattr(recipes["short"].override(**{field: value}), field)
    fault("fields of a recipe").right(
        found == expected and type(found) is type(expected), message=repr(found)
    )


@pytest.mark.parametrize("size", [0, -4, "wide", 2.5])
@pytest.mark.parametrize("field", ["projection_size", "projection_hidden_size"])
def test_a_projection_of_no_size_is_refused(fault, field, size):
    with fault("fields of a recipe").refused(ValueError, says=("head", "must be")):
        method(SimCLR, **{field: size})


@pytest.mark.parametrize("recipe", [MOCO["short"], Recipe("mine", "a test"), 3, {"lr": 0.1}])
def test_another_methods_recipe_is_refused(fault, recipe):
    with fault("fields of a recipe").refused(ValueError, says="SimCLRRecipe"):
        SimCLR(networks.conv4(), image_size=16, recipe=recipe)


# -------------------------------------------------------------------------------------------- learners' loops


def loop(learner, *, after_step: bool | range, parts: int = 1, fused: bool = False) -> str:
    """What is said in three steps of one's own; `after_step` is called after all, none, or some of them."""
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 1e-3, fused=fused)

    def run():
        for step in range(3):
            optimizer.zero_grad()
            for _ in range(parts):
                learner(pixels()).backward()
            optimizer.step()
            if after_step is True or after_step and step in after_step:
                learner.after_step()

    return told(run)


@pytest.mark.parametrize("called", [False, range(1), range(1, 2)], ids=["never", "after the first", "second"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [MoCo, BYOL], ids=["MoCo", "BYOL"])
def test_a_forgotten_after_step_is_said_once(fault, kind, fused, called):
    words = loop(method(kind).train(), after_step=called, fused=fused)
    fault("forgotten after_step").right(words.count("after_step") == 1, message=words)


@pytest.mark.parametrize("parts", [1, 3], ids=["", "gradient accumulation"])
@every_method
def test_a_loop_that_calls_it_hears_nothing(fault, kind, parts):
    words = loop(method(kind).train(), after_step=True, parts=parts)
    fault("forgotten after_step").right(not words, message=words)


@pytest.mark.parametrize("learner", [lambda: method(SimCLR), lambda: method(BYOL, momentum=None)])
def test_where_nothing_follows_nothing_is_missed(fault, learner):
    fault("forgotten after_step").right(not loop(learner().train(), after_step=False))


def flipped_by_python(images):
    images = v2.functional.resize(images, [16, 16])
    return images.flip(-1) if random.random() < 0.5 else images


ONE_DRAW = {
    "crop": v2.RandomResizedCrop(16, scale=(0.2, 0.6)),
    "flip": v2.Compose([v2.Resize(16), v2.RandomHorizontalFlip()]),
    "colour": v2.Compose([v2.Resize(16), v2.ColorJitter(0.5)]),
    "Python's random": flipped_by_python,
}
PER_IMAGE = {
    "a loop": lambda images: torch.stack([ONE_DRAW["crop"](image) for image in images]),
    "nothing drawn": v2.Resize(16),
    "in place": lambda images: v2.functional.resize(images.mul_(0.5), [16, 16]),
    "noise": lambda images: (
        (v2.functional.resize(images, [16, 16]) + 0.1 * torch.rand(len(images), 3, 16, 16)) / 1.1
    ),
}


@pytest.mark.parametrize("name", ONE_DRAW)
def test_one_draw_for_a_batch_is_said(fault, name):
    learner = method(SimCLR, augment=ONE_DRAW[name])
    words = told(lambda: [learner.augment(pixels()) for _ in range(2)])
    fault("augmentations").right(words.count("once for the whole batch") == 1, message=words)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_draw_for_each_image_is_not_and_draws_are_left_alone(fault, name):
    learner, images, next_draws = method(SimCLR, augment=PER_IMAGE[name]), pixels(), []
    for _ in range(2):  # the first time it is tried
        torch.manual_seed(3), random.seed(3)
        words = told(lambda: learner.augment(images))
        next_draws.append((torch.rand(()).item(), random.random()))
    fault("augmentations").right(not words and next_draws[0] == next_draws[1], message=words)


def test_an_augmentation_that_works_in_place_harms_no_other_view(fault):
    learner, images = method(SimCLR, augment=PER_IMAGE["in place"]), pixels()
    kept = images.clone()
    one, two = learner.augment(images)
    fault("augmentations").right(torch.equal(one, two) and torch.equal(images, kept))


@pytest.mark.parametrize(("queue", "said"), [(17, True), (1000, True), (16, False), (8, False)])
def test_a_queue_longer_than_the_data_is_said(fault, queue, said):
    words = told(lambda: pretrain(method(MoCo, queue=queue), store(16), epochs=1, batch_size=8, **CPU))
    fault("runs that learn nothing").right((f"queue {queue}" in words) == said, message=words)


@pytest.mark.parametrize(
    ("fields", "said"), [({}, True), ({"warmup": 0.0}, False), ({"schedule": "step"}, True)]
)
def test_a_run_whose_rates_are_all_0_is_said(fault, fields, said):
    words = told(lambda: pretrain(method(SimCLR, **fields), store(16), epochs=1, batch_size=16, **CPU))
    fault("runs that learn nothing").right(("rate of 0" in words) == said, message=words)
