"""Judging an encoder: kNN, linear probes, few labels, fine-tuning, and the baselines.

Everything but fine-tuning reads the frozen backbone (not the projection), in eval mode and without gradients:
a judged encoder stays the same to the bit. Test labels are used to count right answers and for nothing else.
Letters: N training images, M test images, D features, C classes.
"""

import copy
import hashlib
import inspect
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_lessons import networks, views
from ssl_lessons.devices import autocast, pick_device, pick_precision
from ssl_lessons.images import SPLITS, ImageStore, is_whole
from ssl_lessons.methods.base import Method, Objective, Recipe, check_temperature, size_of, unit
from ssl_lessons.networks import Encoder, eval_mode
from ssl_lessons.parameters import Parameter, fit
from ssl_lessons.records import RecordError, Run, configuration, digest, of_memory, read_state, write_state
from ssl_lessons.training import Monitor, pretrain
from ssl_lessons.views import CROP_ONLY, centre, in_channels

K, T = 20, 0.07  # solo-learn's kNN; MoCo's and lightly's monitors use 200 and 0.1
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # L2 weights among which a linear probe chooses
FEW = 2000  # images: below, a linear probe averages its choice over five draws
FINE_TUNE_EPOCHS = {1.0: 3, 0.1: 20, 0.01: 40}  # {share of the labels: epochs}; fewer images, more of them


@torch.no_grad()
def features(
    encoder: nn.Module, store: ImageStore, image_size, device="auto", precision="fp32", batch=256, cache=None
) -> Tensor:
    """Features of every image of a store, whole and resized to `image_size`: float32 (N, D) on the CPU.
    The encoder runs in eval mode and is put back as it was: modes, device, parameters, BatchNorm statistics.
    `cache`: a folder in which features are kept by the fingerprint of code, weights, images, size and
    arithmetic; a warning where it cannot be written. ValueError: no image, an encoder that is no module,
    fails, or returns anything but a row an image, features that are not finite."""
    target = pick_device(device)
    precision = pick_precision(precision, target)
    batch, kind = fit("batch", batch, Parameter(int, 256)), type(encoder).__name__
    if not isinstance(encoder, nn.Module) or not len(store):
        raise ValueError(f"give an nn.Module and images, not a {kind} and {len(store)} images")
    kept = cache and Path(cache, f"{_fingerprint(encoder, store, image_size, precision)}.pt")
    with suppress(RecordError, OSError):  # damaged, or not to be read: computed again
        if kept and kept.exists():
            return read_state(kept)["features"]
    channels, parts = getattr(encoder, "channels", 3), []
    with eval_mode(encoder, target):  # a run on the CPU may be watched from the GPU
        for rows in torch.arange(len(store)).split(batch):
            images = in_channels(centre(store.batch(rows, target), image_size), channels)
            with autocast(target, precision):
                parts.append(_pass(encoder, images).flatten(1).float().cpu())
    x, _ = _check(torch.cat(parts))
    if kept:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_state(kept, {"features": x})
        except (RecordError, OSError) as error:  # they took long to compute
            warnings.warn(f"features are not kept in cache {cache} ({error})", stacklevel=3)
    return x


def _pass(encoder: nn.Module, images: Tensor) -> Tensor:
    """What an encoder returns; ValueError where it cannot run, or returns anything but a row an image."""
    name = f"encoder {type(encoder).__name__}, on images {tuple(images.shape)} in {images.dtype},"
    try:
        output = encoder(images)
    except RuntimeError as error:
        if of_memory(error):
            raise
        raise ValueError(f"{name} fails: {error}") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) and not output.is_complex() else ()
    if len(shape) < 2 or len(output) != len(images):
        raise ValueError(f"{name} returns {shape or repr(output)[:80]}; return a real tensor, a row an image")
    return output


def _fingerprint(encoder: nn.Module, store: ImageStore, image_size: int, precision: str) -> str:
    """What decides features: code, the network as it is set up, its hooks, weights and statistics, the images
    as they are, their size."""
    code = [inspect.getsource(module) for module in (networks, views)] + [torch.__version__]
    own = []  # what a class does not say of its objects
    for part in encoder.modules():
        own += [*part._forward_hooks.values(), *part._forward_pre_hooks.values(), vars(part).get("forward")]
    with eval_mode(encoder):
        network = configuration([encoder, own])
    pixels = store.images.transpose(1, 2)  # as they lie in memory
    return digest([code, network, dict(encoder.state_dict()), pixels, image_size, precision])[:32]


def _check(x: Tensor, y: Tensor | None = None, width: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Features (N, D) in float32 and their labels (N,), if given, in int64: on the CPU, without gradients.
    ValueError: x are no real features (N, D) that can be judged, or y no labels of theirs."""
    x, y = torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    shape = tuple(x.shape)
    if x.dim() != 2 or not x.numel() or width not in (None, shape[1]) or x.is_complex():
        want = f"real (N, {width or 'D'}), a row for each of N > 0 images"
        raise ValueError(f"features are {shape}, {x.dtype}; give {want}")
    x, kept = x.detach().cpu().float(), x.any(dim=1).cpu()
    # too large to square is too large to compare; float64 may vanish in float32
    bad = (~x.norm(dim=1).isfinite() | kept & ~x.any(dim=1)).sum().item()
    if bad:
        kinds = "NaN, infinite, huge or tiny"
        raise ValueError(f"features of {bad} of {len(x)} images are {kinds}; see the encoder")
    if y is None:
        return x, None
    if y.shape != (len(x),) or not is_whole(y):
        raise ValueError(f"labels are {y.dtype} {tuple(y.shape)}; give a whole number for each of {len(x)}")
    if y.min() < 0:
        raise ValueError(f"a label is {y.min()}; leave images without a class out, and number classes from 0")
    return x, y.detach().cpu().long()


def labels_of(store: ImageStore, classes: Sequence[str] = ()) -> Tensor:
    """A store's labels, int64 (N,); with the `classes` of the split that it is judged with, in their numbers,
    matched by name. ValueError: no labels, or images of a class that is not among `classes`."""
    name = f"{store.name} ({store.split})"
    if store.labels is None:
        raise ValueError(f"{name} has no labels to judge by; use a split with labels")
    store.__post_init__()  # others may have been given to it since
    if not classes or tuple(classes) == tuple(store.classes):
        return store.labels
    present = {store.classes[label] for label in store.labels.unique().tolist()}
    unknown, others = ", ".join(sorted(present - set(classes))), ", ".join(classes)
    if unknown:
        raise ValueError(f"{name} has images of {unknown}, but the other split's classes are {others}")
    numbers = [classes.index(name) if name in classes else -1 for name in store.classes]
    return torch.tensor(numbers)[store.labels]


@torch.inference_mode(False)
@torch.autocast("cpu", enabled=False)
def knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int = K, t: float = T) -> Tensor:
    """Classes, int64 (M,), by weighted nearest neighbours: Wu et al. 2018 (arXiv:1805.01978), section 3.4.
    Each of the k training images most alike by cosine (all, with a warning, where they are fewer) votes for
    its class with weight exp(cosine / t). train_x, test_x: real (N, D) and (M, D), of any length; train_y:
    whole numbers (N,) from 0, any. ValueError: k below 1, t not above 0, or what `_check` refuses."""
    k = fit("k", k, Parameter(int, K))
    check_temperature(t, f"t is {t}, {T} is usual")
    train_x, train_y = _check(train_x, train_y)
    test_x, _ = _check(test_x, width=train_x.shape[1])
    present, train_y = train_y.unique(return_inverse=True)
    if k > len(train_x):
        warnings.warn(f"k {k} is more than the {len(train_x)} training images, which all vote", stacklevel=4)
        k = len(train_x)
    train_x, predicted = unit(train_x), []
    for block in unit(test_x).split(1024):  # (1024, N) similarities at a time
        similarity, nearest = (block @ train_x.T).topk(k, dim=1)  # (b, k)
        # exp((s − s_max)/t) orders classes as exp(s/t) does, and cannot overflow
        weight = ((similarity - similarity[:, :1]) / t).exp()
        votes = weight.new_zeros(len(block), len(present)).scatter_add_(1, train_y[nearest], weight)
        predicted.append(present[votes.argmax(dim=1)])
    return torch.cat(predicted)


def stratified(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Indices of a random `fraction` of each class (at least one image of each), sorted; int64."""
    _draws(fraction, 1, seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(1, round(fraction * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


@torch.enable_grad()
def _fit(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: mean cross-entropy + decay·‖W‖²/2 by at most 100 steps of L-BFGS.
    scikit-learn's stops elsewhere under a weak decay, and old numbers must compare with new ones."""
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    lbfgs = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    lbfgs.step(loss)
    return weight.detach(), bias.detach()


@torch.inference_mode(False)
@torch.autocast("cpu", enabled=False)
def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """Classes (M,) of `test_x` by logistic regression on frozen features, and the L2 weight it chose.
    Features of any size are standardised by the training set. The L2 weight is the one of `DECAYS` that does
    best on a held-out fifth of the *training* images (the mean of five draws where they are few); then all of
    them are fitted again. ValueError: as for `knn`."""
    train_x, train_y = _check(train_x, train_y)
    test_x, _ = _check(test_x, width=train_x.shape[1])
    if len(train_x) < 2:
        raise ValueError("one training image has no deviation to standardise by; give at least 2")
    size = size_of(train_x, dim=0)
    train_x, test_x = train_x / size, test_x / size
    mean, std = train_x.mean(dim=0), train_x.std(dim=0).clamp_min(1e-6)
    train_x, (test_x, _) = (train_x - mean) / std, _check((test_x - mean) / std)
    present, train_y = train_y.unique(return_inverse=True)
    classes = len(present)
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
    return present[(test_x @ weight.T + bias).argmax(dim=1)], best


def knn_monitor(train: ImageStore, test: ImageStore, image_size: int, device="auto", most=4000) -> Monitor:
    """A monitor for `pretrain`: kNN accuracy on at most `most` images of each store, in the device's fastest
    precision. A curve to watch; `judge` gives the number to quote. ValueError: as `labels_of`."""
    most = fit("most", most, Parameter(int, 4000))
    generator, parts = torch.Generator().manual_seed(0), []
    for store in (train, test):
        rows = torch.randperm(len(store), generator=generator)[:most]
        parts.append(store.subset(rows.sort().values))
    train_y, test_y = labels_of(parts[0]), labels_of(parts[1], train.classes)

    def monitor(encoder: nn.Module) -> dict[str, float]:
        x, test_x = (features(encoder, part, image_size, device, "auto") for part in parts)
        right = knn(x, train_y, test_x) == test_y
        return {"knn": right.float().mean().item()}

    return monitor


def judge(
    encoder, train, test, image_size, *, device="auto", fractions=(1.0, 0.1), draws=1, seed=0, cache=None
) -> dict[str, dict]:
    """Accuracy of a frozen encoder (any module on images) on two image stores, by weighted kNN and by linear
    probes with `fractions` of the labels. A part of the labels is drawn `draws` times, with seeds from `seed`
    on; for `cache` see `features`. Returns {"knn": {"value": accuracy in [0, 1], "protocol": how it was
    measured, "confusion": counts (C, C)}, "linear_100": …}, ready for a record's `metrics`. Of several draws
    "value" is the mean, "std" the sample standard deviation, and the confusion the first's."""
    fractions = fit("fractions", fractions, Parameter(tuple[float, ...], ...))
    parts = {f"linear_{100 * fraction:g}": _draws(fraction, draws, seed) for fraction in fractions}
    if len(parts) < len(fractions):
        raise ValueError(f"fractions {fractions} have one name, of {', '.join(parts)}; leave one out")
    train_y, leaked = labels_of(train), len(test.copies(train))
    labels_of(test, train.classes)  # said before anything is computed
    if leaked:
        warnings.warn(f"{leaked} of {len(test)} test images are training images too", stacklevel=2)
    train_x, test_x = (features(encoder, store, image_size, device, cache=cache) for store in (train, test))
    protocol = f"weighted kNN, k {min(K, len(train))}, t {T}, backbone, {image_size} px"
    metrics = {"knn": _metric([knn(train_x, train_y, test_x)], train, test, protocol)}
    for (name, (seeds, share)), fraction in zip(parts.items(), fractions, strict=True):
        predicted, decays = [], []
        for draw in seeds:
            rows = stratified(train_y, fraction, draw)
            classes, decay = linear_probe(train_x[rows], train_y[rows], test_x, draw)
            predicted.append(classes)
            decays.append(decay)
        protocol = f"linear probe (L-BFGS, L2 chosen on train), {share}, backbone, {image_size} px"
        metric = _metric(predicted, train, test, protocol)
        metrics[name] = {**metric, "seeds": seeds, "l2": decays}
    return metrics


def _draws(fraction: float, draws: int, seed: int) -> tuple[list[int], str]:
    """The seeds of `draws` draws of a part of the labels (of all of them: one), and the part in words."""
    draws, seed = fit("draws", draws, Parameter(int, 1)), fit("seed", seed, Parameter(int, 0))
    fraction = fit("fraction", fraction, Parameter(float, 1.0))
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} must be above 0 and at most 1")
    seeds = list(range(seed, seed + (draws if fraction < 1 else 1)))
    several = f", {len(seeds)} draws" if len(seeds) > 1 else ""
    return seeds, f"{100 * fraction:g}% of the labels{several}"


def _metric(predicted: list[Tensor], train: ImageStore, test: ImageStore, protocol: str) -> dict:
    """A record's entry of one or several predictions (M,) of the same test images."""
    labels, count = labels_of(test, train.classes), len(train.classes)
    values = torch.stack([(classes == labels).double().mean() for classes in predicted])
    several = {"std": values.std().item(), "draws": values.tolist()} if len(values) > 1 else {}
    table = (labels * count + predicted[0]).bincount(minlength=count**2).view(count, count)
    protocol = f"{protocol}, {train.name} {train.split} ({len(train)}) → {test.split} ({len(test)})"
    return {"value": values.mean().item(), **several, "protocol": protocol, "confusion": table.tolist()}


def random_encoder(network: str, image_size: int, stem=None, seed: int = 0, layer=None) -> Encoder:
    """The encoder that has learnt nothing: the same architecture and layer, freshly drawn from a seed. The
    global generators are left as they were, so that a baseline changes no training run."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of the GPUs too
        return networks.tap(networks.build(network, image_size, stem), layer, image_size)


def load_encoder(run: Run | str | Path) -> Encoder:
    """The trained encoder of a run folder, rebuilt from what its record says of the network."""
    run = run if isinstance(run, Run) else Run.open(run)
    if not run.record.get("network"):
        raise RecordError(f"{run.folder} does not say which network it trained; use Run.load_encoder")
    return _rebuilt(run.record["network"], run.load_encoder)


def _rebuilt(network: dict, fill) -> Encoder:
    """The network that a record describes, filled with weights and tapped at its layer."""
    plain = networks.build(network["name"], network["image_size"], network.get("stem"))
    fill(plain)
    return networks.tap(plain, network.get("layer"), network["image_size"])


def place_of(dataset: dict | None) -> str:
    """What `images.load` takes for the images that a record says were trained on: a name, or a folder.
    RecordError: it does not say, or the folder is gone."""
    name, origin, place = ((dataset or {}).get(part) or "" for part in ("name", "origin", "place"))
    if not name:
        raise RecordError("the record does not say which images were trained on; name them with --dataset")
    if not place and not origin.startswith("folder "):
        return name
    folder = Path(place or origin.removeprefix("folder "))
    if not folder.is_dir():
        raise RecordError(f"the images trained on were in {folder}, which is gone; name them with --dataset")
    inside = not place and folder.name.lower() in SPLITS and dataset["split"] != "all"  # older: a guess
    return str(folder.parent if inside else folder)


def weights_folder() -> Path:
    """data/weights of the checkout: encoders of long runs, each with its record."""
    return Path(__file__).resolve().parent.parent / "data" / "weights"


def pretrained(name: str, folder: str | Path | None = None) -> Encoder:
    """An encoder that comes with the project, by the name of its file in data/weights (or another `folder`):
    "moco-imagenette". RecordError: no such weights, or a file whose sha256 is not the one of its record."""
    place = Path(folder or weights_folder())
    path = place / f"{name}.safetensors"
    if not path.exists():
        names = ", ".join(sorted(other.stem for other in place.glob("*.safetensors"))) or "none"
        raise RecordError(f"no weights {name!r} in {place}; there are: {names}")
    record = Run.open(path.with_suffix(".json")).record
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != record.get("sha256"):
        raise RecordError(f"{path} has sha256 {sha256}, not its record's; fetch both again")
    weights = load_file(path)  # half precision is widened as it is copied
    return _rebuilt(record["network"], lambda plain: plain.load_state_dict(weights))


class Supervised(Method):
    """The baseline that may look at the labels: cross-entropy on crops and flips, trained by the same loop.
    `network` is one to be tapped at `layer`, or an `Encoder`; "accuracy" is that on the augmented batch."""

    supervised = True

    def __init__(self, network: nn.Module, classes: int, image_size: int, layer=None, **overrides):
        super().__init__()
        settings = {"optimizer": "adamw", "lr": 1e-3, "lr_batch": None, "weight_decay": 0.05, "warmup": 1.0}
        recipe = Recipe("supervised", "ours: AdamW, cosine, crops and flips", **settings)
        self.recipe = recipe.override(**overrides)
        self.encoder = network if isinstance(network, Encoder) else networks.tap(network, layer, image_size)
        self.image_size, self.channels = image_size, self.encoder.channels
        self.policies, self.classes = (CROP_ONLY,), classes
        self.projector = nn.Identity()
        self.classifier = nn.Linear(self.encoder.width, classes)

    def forward(self, views, labels: Tensor) -> Objective:
        logits = self.classifier(self.encoder(views[0])).float()  # (B, classes)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return Objective(F.cross_entropy(logits, labels), {"accuracy": accuracy})


def fine_tune(
    encoder, train, test, image_size, *, fraction=1.0, epochs=10, draws=1, seed=0, device="auto", **overrides
) -> dict:
    """Accuracy when the whole network goes on learning from a part of the labels: an entry like `judge`'s.
    A copy of the `Encoder` with a linear classifier on top is trained as `Supervised` is, by a recipe with
    `overrides` (in batches of 64, if they say nothing else), for `epochs` over a `fraction` of each class's
    images; the last epoch counts. There are `draws` of the part, with seeds from `seed` on, each with a
    classifier of its own."""
    predicted, (seeds, share) = [], _draws(fraction, draws, seed)
    labels_of(test, train.classes)  # said before anything is trained
    for draw in seeds:
        part = train if fraction == 1 else train.subset(stratified(labels_of(train), fraction, draw))
        torch.manual_seed(draw)  # the classifier's first weights
        fields = {"batch_size": 64, **overrides}
        student = Supervised(copy.deepcopy(encoder), len(train.classes), image_size, **fields)
        record = pretrain(student, part, epochs=epochs, seed=draw, device=device, progress="none")
        logits = nn.Sequential(student.encoder, student.classifier)
        logits.channels = student.encoder.channels
        predicted.append(features(logits, test, image_size, device).argmax(dim=1))
    recipe = student.recipe
    how = f"{recipe.optimizer}, lr {recipe.lr:g}, {epochs} epochs, batches of {record['batch_size']}"
    metric = _metric(predicted, train, test, f"fine-tuned ({how}), {share}, {image_size} px")
    return {**metric, "seeds": seeds}


def report(encoder, train, test, image_size, fine_tune_epochs=None, **settings) -> dict[str, dict]:
    """Everything that one checkpoint can be asked: `judge` by its `settings` (all, 10 and 1 % of labels in
    three draws, if they say nothing else), then `fine_tune` with each of `fine_tune_epochs` {fraction of the
    labels: epochs}: {"knn": …, "linear_100": …, "finetune_100": …, …}."""
    settings = {"fractions": (1.0, 0.1, 0.01), "draws": 3, **settings}
    metrics = judge(encoder, train, test, image_size, **settings)
    same = {name: settings[name] for name in ("draws", "seed", "device") if name in settings}
    for fraction, epochs in (fine_tune_epochs or {}).items():
        tuned = fine_tune(encoder, train, test, image_size, fraction=fraction, epochs=epochs, **same)
        metrics[f"finetune_{100 * fraction:g}"] = tuned
    return metrics
