"""Judging an encoder: kNN, linear probes, few labels, fine-tuning, other datasets, and its baselines.

Everything but fine-tuning reads the frozen backbone (not the projection), in eval mode and without gradients:
a judged encoder stays the same to the bit. Test labels are used to count right answers and for nothing else.
"""

import copy
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_lessons import networks
from ssl_lessons.devices import autocast, pick_device, pick_precision
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method, Objective, Recipe
from ssl_lessons.networks import Encoder, at_rest
from ssl_lessons.probes import DECAYS, FEW, K, T, confusion, knn, linear_probe, stratified  # noqa: F401
from ssl_lessons.records import RecordError, Run, atomically
from ssl_lessons.training import Monitor, pretrain
from ssl_lessons.views import CROP_ONLY, centre, in_channels

FINE_TUNE_EPOCHS = {1.0: 3, 0.1: 20, 0.01: 40}  # {share of the labels: epochs}; fewer images, more of them


@torch.no_grad()
def features(
    encoder: nn.Module,
    store: ImageStore,
    image_size: int,
    device: str = "auto",
    precision: str = "fp32",
    batch: int = 256,
    cache: str | Path | None = None,
) -> Tensor:
    """Features of every image of a store, whole and resized to `image_size`: float32 (N, D) on the CPU.

    The encoder runs in eval mode and is put back as it was: its modes, its device, every parameter and every
    BatchNorm statistic.

    Args:
        cache: a folder in which features are kept and found again, by the fingerprint of the weights, the
            images, the size and the arithmetic; None keeps nothing.
    """
    target = pick_device(device)
    precision = pick_precision(precision, target)
    kept = cache and Path(cache, f"{_fingerprint(encoder, store, image_size, precision)}.pt")
    if kept and kept.exists():
        return torch.load(kept, weights_only=True)
    context = autocast(target, precision)
    channels, parts = getattr(encoder, "channels", 3), []
    with at_rest(encoder, target):  # a run on the CPU may be watched from the GPU
        for rows in torch.arange(len(store)).split(batch):
            images = in_channels(centre(store.batch(rows, target), image_size), channels)
            with context:
                parts.append(encoder(images).flatten(1).float().cpu())
    found = torch.cat(parts)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomically(kept, lambda path: torch.save(found, path))
    return found


def _fingerprint(encoder: nn.Module, store: ImageStore, image_size: int, precision: str) -> str:
    """What decides features: the network's structure, every weight and statistic, the images, their size."""
    what = (encoder, getattr(encoder, "layer", None), store.fingerprint, len(store), image_size, precision)
    digest = hashlib.sha256(repr(what).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


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
    draws: int = 1,
    seed: int = 0,
    cache: str | Path | None = None,
) -> dict[str, dict]:
    """Accuracy of a frozen encoder by weighted kNN and by linear probes with parts of the labels.

    Args:
        fractions: of the labels, a linear probe each. draws: how many stratified draws of a part of the
            labels, with seeds from `seed` on. cache: a folder for the features, see `features`.
    Returns:
        {"knn": {"value": accuracy in [0, 1], "protocol": how it was measured, "confusion": counts (C, C)},
        "linear_100": …, "linear_10": …}, ready for a run record's `metrics`. With several draws "value" is
        their mean, "std" their sample standard deviation, "draws" each of them, "seeds" theirs, "l2" the
        weights chosen, and the confusion the first's. The protocol's text is the same whatever the seed.
    """
    train_y = _labels(train)
    train_x, test_x = (features(encoder, store, image_size, device, cache=cache) for store in (train, test))
    where = f"backbone, {image_size} px, {_where(train, test)}"
    metrics = {"knn": _metric([knn(train_x, train_y, test_x)], test, f"weighted kNN, k {K}, t {T}, {where}")}
    for fraction in fractions:
        seeds, found = range(seed, seed + (draws if fraction < 1 else 1)), []
        for each in seeds:
            rows = stratified(train_y, fraction, each)
            found.append(linear_probe(train_x[rows], train_y[rows], test_x, each))
        text = f"linear probe (L-BFGS, L2 chosen on train), {_share(fraction, len(seeds))}, {where}"
        metric = _metric([predicted for predicted, _ in found], test, text)
        metrics[f"linear_{100 * fraction:g}"] = {**metric, "seeds": [*seeds], "l2": [l2 for _, l2 in found]}
    return metrics


def _where(train: ImageStore, test: ImageStore) -> str:
    return f"{train.name} {train.split} ({len(train)}) → {test.split} ({len(test)})"


def _share(fraction: float, draws: int) -> str:
    return f"{100 * fraction:g}% of the labels" + (f", {draws} draws" if draws > 1 else "")


def _metric(predicted: list[Tensor], test: ImageStore, protocol: str) -> dict:
    """A record's entry of one or several predictions (M,) of the same test images."""
    labels = _labels(test)
    values = torch.stack([(each == labels).double().mean() for each in predicted])
    several = {"std": values.std().item(), "draws": values.tolist()} if len(values) > 1 else {}
    table = confusion(predicted[0], labels, len(test.classes)).tolist()
    return {"value": values.mean().item(), **several, "protocol": protocol, "confusion": table}


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


def weights_folder() -> Path:
    """data/weights of the checkout: encoders of long runs, each with its record."""
    return Path(__file__).resolve().parent.parent / "data" / "weights"


def pretrained(name: str, folder: str | Path | None = None) -> Encoder:
    """An encoder that comes with the project, trained in a long run; data/weights/README.md has the names.

    Args:
        name: of the file, "moco-imagenette". folder: where it lies; None for the checkout's data/weights.
    Raises:
        RecordError: no such weights (the message lists what is there), or a file whose sha256 is not the one
            that its record gives.
    """
    place = Path(folder or weights_folder())
    path = place / f"{name}.safetensors"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in place.glob("*.safetensors"))) or "none"
        raise RecordError(f"no weights {name!r} in {place}; there are: {known}")
    record = Run.open(path.with_suffix(".json")).record
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != record.get("sha256"):
        raise RecordError(
            f"{path} has sha256 {found}, not its record's {record.get('sha256')}; fetch it again"
        )
    network = record["network"]
    plain = networks.build(network["name"], network["image_size"], network.get("stem"))
    plain.load_state_dict(load_file(path))  # half precision is widened as it is copied
    return networks.tap(plain, network.get("layer"), network["image_size"])


class Supervised(Method):
    """The baseline that may look at the labels: cross-entropy on crops and flips, trained by the same loop.

    `network` is one to be tapped at `layer`, or an `Encoder`. The single diagnostic is the accuracy on the
    augmented training batch.
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
        wrapped = isinstance(network, Encoder)
        self.encoder = network if wrapped else networks.tap(network, layer, image_size)
        self.classifier = nn.Linear(self.encoder.width, classes)

    def forward(self, views, labels: Tensor) -> Objective:
        logits = self.classifier(self.encoder(views[0])).float()  # (B, classes)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return Objective(F.cross_entropy(logits, labels), {"accuracy": accuracy})


def fine_tune(
    encoder: Encoder,
    train: ImageStore,
    test: ImageStore,
    image_size: int,
    *,
    fraction: float = 1.0,
    epochs: int = 10,
    draws: int = 1,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    **overrides,
) -> dict:
    """Accuracy when the whole network goes on learning from a part of the labels: an entry like `judge`'s.

    A linear classifier on top, both trained as `Supervised` is (crops and flips, cosine); the last epoch
    counts. What is trained is a copy.

    Args:
        fraction: of each class's labels. epochs: over these images. draws: of the part, with seeds from
            `seed` on, each with a classifier of its own. overrides: of the recipe, `lr=3e-4`.
    """
    labels, seeds, found = _labels(train), range(seed, seed + (draws if fraction < 1 else 1)), []
    for each in seeds:
        part = train if fraction == 1 else train.subset(stratified(labels, fraction, each))
        torch.manual_seed(each)  # the classifier's first weights
        student = Supervised(copy.deepcopy(encoder), len(train.classes), image_size, **overrides)
        same = {"seed": each, "device": device, "progress": "none"}
        pretrain(student, part, epochs=epochs, batch_size=min(batch_size, len(part)), **same)
        student.cpu().eval()
        with torch.no_grad():
            found.append(
                student.classifier(features(student.encoder, test, image_size, device)).argmax(dim=1)
            )
    recipe = student.recipe
    text = f"fine-tuned ({recipe.optimizer}, lr {recipe.lr:g}, {epochs} epochs, batches of "
    text += f"{min(batch_size, len(part))}), {_share(fraction, len(seeds))}, {image_size} px"
    return {**_metric(found, test, f"{text}, {_where(train, test)}"), "seeds": [*seeds]}


def report(
    encoder: Encoder,
    train: ImageStore,
    test: ImageStore,
    image_size: int,
    *,
    fractions: tuple[float, ...] = (1.0, 0.1, 0.01),
    fine_tune_epochs: dict[float, int] | None = None,
    draws: int = 3,
    seed: int = 0,
    device: str = "auto",
    cache: str | Path | None = None,
) -> dict[str, dict]:
    """Everything that one checkpoint can be asked: `judge` with several draws, then `fine_tune`.

    Args:
        fine_tune_epochs: {fraction of the labels: epochs}; None or {} leaves fine-tuning out.
    Returns:
        {"knn": …, "linear_100": …, "linear_10": …, "linear_1": …, "finetune_100": …, …}.
    """
    same = {"draws": draws, "seed": seed, "device": device}
    metrics = judge(encoder, train, test, image_size, fractions=fractions, cache=cache, **same)
    for fraction, epochs in (fine_tune_epochs or {}).items():
        tuned = fine_tune(encoder, train, test, image_size, fraction=fraction, epochs=epochs, **same)
        metrics[f"finetune_{100 * fraction:g}"] = tuned
    return metrics


def transfer(
    encoders: dict[str, nn.Module],
    datasets: dict[str, tuple[ImageStore, ImageStore]],
    image_size: int,
    *,
    device: str = "auto",
    cache: str | Path | None = None,
) -> dict[str, dict[str, dict]]:
    """Pretrained on A, judged on B: {name of the encoder: {name of the dataset: `judge`'s metrics}}."""
    return {
        name: {
            data: judge(encoder, *stores, image_size, device=device, cache=cache)
            for data, stores in datasets.items()
        }
        for name, encoder in encoders.items()
    }
