"""Judging a frozen encoder: features once, then weighted kNN and a linear probe, beside their baselines.

Everything here reads the backbone (not the projection), in eval mode and without gradients: a judged encoder
stays the same to the bit. Test labels are used to count right answers and for nothing else.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lessons import networks
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method, Objective, Recipe
from ssl_lessons.networks import Encoder
from ssl_lessons.records import RecordError, Run
from ssl_lessons.training import Monitor, autocast, pick_device, pick_precision
from ssl_lessons.views import CROP_ONLY, centre, in_channels

K, T = 20, 0.07  # solo-learn's kNN; MoCo's and lightly's monitors use 200 and 0.1
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # L2 weights among which a linear probe chooses
FEW = 2000  # images: below, a linear probe averages its choice over five draws


@torch.no_grad()
def features(
    encoder: nn.Module,
    store: ImageStore,
    image_size: int,
    device: str = "auto",
    precision: str = "fp32",
    batch: int = 256,
) -> Tensor:
    """Features of every image of a store, whole and resized to `image_size`: float32 (N, D) on the CPU.

    The encoder runs in eval mode and is put back as it was: its modes, its device, every parameter and every
    BatchNorm statistic.
    """
    target = pick_device(device)
    context = autocast(target, pick_precision(precision, target))
    was_training = [module for module in encoder.modules() if module.training]
    channels = getattr(encoder, "channels", 3)
    home = next(encoder.parameters(), torch.empty(0)).device  # a run on the CPU may be watched from the GPU
    encoder.to(target).eval()
    try:
        parts = []
        for rows in torch.arange(len(store)).split(batch):
            images = in_channels(centre(store.batch(rows, target), image_size), channels)
            with context:
                parts.append(encoder(images).flatten(1).float().cpu())
    finally:
        encoder.to(home)
        for module in was_training:
            module.training = True
    return torch.cat(parts)


def knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int = K, t: float = T) -> Tensor:
    """Classes of `test_x` by weighted nearest neighbours: Wu et al. 2018 (arXiv:1805.01978), section 3.4.

    Each of the k training images most alike by cosine votes for its class with weight exp(cosine / t).

    Args:
        train_x, test_x: float (N, D) and (M, D), of any length. train_y: int64 (N,), classes from 0.
    Returns:
        int64 (M,).
    Raises:
        ValueError: k outside 1 … N, or t not above 0.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k {k} must lie between 1 and the {len(train_x)} training images")
    if t <= 0:
        raise ValueError(f"t {t} must be above 0; {T} is usual")
    train_x, classes = F.normalize(train_x.float(), dim=1), int(train_y.max()) + 1
    predicted = []
    for block in F.normalize(test_x.float(), dim=1).split(1024):  # (1024, N) similarities at a time
        similarity, nearest = (block @ train_x.T).topk(k, dim=1)  # (b, k)
        # exp((s − s_max)/t) orders classes as exp(s/t) does, and cannot overflow
        weight = ((similarity - similarity[:, :1]) / t).exp()
        votes = torch.zeros(len(block), classes).scatter_add_(1, train_y[nearest], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def stratified(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Indices of a random `fraction` of each class (at least one image of each), sorted; int64."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} must be above 0 and at most 1")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(1, round(fraction * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


@torch.enable_grad()
def _fit(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: mean cross-entropy + decay·‖W‖²/2 by full-batch L-BFGS.

    At most 100 iterations: under a decay of about 1e-3 that stops short of the minimum, as if the decay were
    a little stronger.
    """
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    lbfgs = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    lbfgs.step(loss)
    return weight.detach(), bias.detach()


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """Classes (M,) of `test_x` by logistic regression on frozen features, and the L2 weight it chose.

    Features are standardised by the training set's mean and deviation. The L2 weight is the one of `DECAYS`
    that does best on a held-out fifth of the *training* images (the mean of five such draws where they are
    few, and one draw says little); then all of them are fitted again.
    """
    mean, std = train_x.mean(dim=0), train_x.std(dim=0).clamp_min(1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    classes = int(train_y.max()) + 1
    right = dict.fromkeys(DECAYS, 0)
    for draw in range(5 if len(train_y) < FEW else 1):
        held = torch.zeros(len(train_y), dtype=torch.bool)
        held[stratified(train_y, 0.2, seed + draw)] = True
        if (~held).sum() < classes:  # one image a class: nothing to hold out
            break
        for decay in DECAYS:
            weight, bias = _fit(train_x[~held], train_y[~held], classes, decay)
            predicted = (train_x[held] @ weight.T + bias).argmax(dim=1)
            right[decay] += (predicted == train_y[held]).sum().item()
    best = max(reversed(DECAYS), key=right.get)  # of equals, the strongest
    weight, bias = _fit(train_x, train_y, classes, best)
    return (test_x @ weight.T + bias).argmax(dim=1), best


def _labels(store: ImageStore) -> Tensor:
    if store.labels is None:
        raise ValueError(f"{store.name} ({store.split}) has no labels to judge by; use a split with labels")
    return store.labels


def knn_monitor(
    train: ImageStore, test: ImageStore, image_size: int, device: str = "auto", most: int = 4000
) -> Monitor:
    """A monitor for `pretrain`: kNN accuracy of the encoder on at most `most` images of each store.

    A curve to watch, from a part of the images in the device's fastest precision; `judge` gives the number
    to quote.
    """
    generator = torch.Generator().manual_seed(0)

    def part(store: ImageStore) -> ImageStore:
        return store.subset(torch.randperm(len(store), generator=generator)[:most].sort().values)

    train, test = part(train), part(test)

    def monitor(encoder: nn.Module) -> dict[str, float]:
        x, y = (features(encoder, store, image_size, device, "auto") for store in (train, test))
        return {"knn": (knn(x, _labels(train), y) == _labels(test)).float().mean().item()}

    return monitor


def judge(
    encoder: nn.Module,
    train: ImageStore,
    test: ImageStore,
    image_size: int,
    *,
    device: str = "auto",
    fractions: tuple[float, ...] = (1.0, 0.1),
    seed: int = 0,
) -> dict[str, dict]:
    """Accuracy of a frozen encoder by weighted kNN and by linear probes with parts of the labels.

    Returns:
        {"knn": {"value": accuracy in [0, 1], "protocol": how it was measured}, "linear_100": …,
        "linear_10": …}, a linear probe for each of the `fractions`: ready for a run record's `metrics`.
    """
    train_y, test_y = _labels(train), _labels(test)
    train_x, test_x = (features(encoder, store, image_size, device) for store in (train, test))
    where = f"backbone, {image_size} px, {train.name} "
    where += f"{train.split} ({len(train)}) → {test.split} ({len(test)})"

    def metric(predicted: Tensor, protocol: str) -> dict:
        return {"value": (predicted == test_y).float().mean().item(), "protocol": f"{protocol}, {where}"}

    metrics = {"knn": metric(knn(train_x, train_y, test_x), f"weighted kNN, k {K}, t {T}")}
    for fraction in fractions:
        rows = stratified(train_y, fraction, seed)
        predicted, decay = linear_probe(train_x[rows], train_y[rows], test_x, seed)
        text = f"linear probe (L-BFGS, L2 {decay:g} chosen on train), {100 * fraction:g}% of the labels, "
        text += f"seed {seed}"
        metrics[f"linear_{100 * fraction:g}"] = metric(predicted, text)
    return metrics


def random_encoder(
    network: str, image_size: int, stem: str | None = None, seed: int = 0, layer: str | int | None = None
) -> Encoder:
    """The encoder that has learnt nothing: the same architecture and layer, freshly drawn from a seed.

    The global generators are left as they were, so that adding a baseline changes no training run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of the GPUs too
        return networks.tap(networks.build(network, image_size, stem), layer, image_size)


def load_encoder(run: Run | str | Path) -> Encoder:
    """The trained encoder of a run folder, rebuilt from what its record says of the network."""
    run = run if isinstance(run, Run) else Run.open(run)
    network = run.record.get("network")
    if not network:
        raise RecordError(
            f"{run.folder} does not say which network it trained; build it and call Run.load_encoder(network)"
        )
    plain = networks.build(network["name"], network["image_size"], network.get("stem"))
    run.load_encoder(plain)
    return networks.tap(plain, network.get("layer"), network["image_size"])


class Supervised(Method):
    """The baseline that may look at the labels: cross-entropy on crops and flips, trained by the same loop.

    Its single diagnostic is the accuracy on the augmented training batch.
    """

    supervised = True

    def __init__(
        self, network: nn.Module, classes: int, image_size: int, layer: str | int | None = None, **overrides
    ):
        super().__init__()
        settings = {"optimizer": "adamw", "lr": 1e-3, "lr_batch": None, "weight_decay": 0.05, "warmup": 1.0}
        recipe = Recipe(name="supervised", source="ours: AdamW, cosine, crops and flips", **settings)
        self.recipe = recipe.override(**overrides)
        self.image_size = image_size
        self.policies = (CROP_ONLY,)
        self.encoder = networks.tap(network, layer, image_size)
        self.classifier = nn.Linear(self.encoder.width, classes)

    def forward(self, views, labels: Tensor) -> Objective:
        logits = self.classifier(self.encoder(views[0])).float()  # (B, classes)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return Objective(F.cross_entropy(logits, labels), {"accuracy": accuracy})
