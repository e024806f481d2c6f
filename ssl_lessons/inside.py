"""Looking inside an encoder: what it finds alike, how good it is layer by layer, and what it ignores.

Tensors in, tensors and numbers out; gaze.py adds where it looks, and portraits.py draws it all. An encoder
that is looked into stays the same to the bit: it runs in eval mode, is put back as it was, and keeps no hook.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lessons.devices import pick_device
from ssl_lessons.evaluate import knn, linear_probe
from ssl_lessons.images import ImageStore
from ssl_lessons.networks import Encoder, at_rest, flat
from ssl_lessons.views import MOCO_V2, Policy, centre, in_channels, views

PIXELS = 32  # raw pixels as features are of views of at most this side: 3,072 numbers
BATCH = 256  # images a pass

# ---- What it finds alike ---------------------------------------------------------------------------------


def nearest(train_x: Tensor, query_x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of `train_x` most alike to each query by cosine, the most alike first.

    `train_x`, `query_x`: float (N, D) and (M, D), of any length. Returns indices int64 (M, k) into `train_x`
    and their cosines float32 (M, k). Raises ValueError for k outside 1 … N.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k {k} must lie between 1 and the {len(train_x)} images to choose from")
    train_x = F.normalize(train_x.float(), dim=1)
    found = [(F.normalize(part.float(), dim=1) @ train_x.T).topk(k, dim=1) for part in query_x.split(1024)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def principal(x: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Principal components: the k directions along which the rows of x spread most.

    Args:
        x: float (N, D), N ≥ 2. Pass rows of length 1 to see what cosines see.
    Returns:
        Coordinates float32 (N, k) along these directions, from the mean of all rows; and the share of the
        variance that each explains, float32 (k,), in [0, 1]. Of a direction's two signs, the one that makes
        its largest entry positive.
    """
    if x.dim() != 2 or len(x) < 2 or not 1 <= k <= min(x.shape):
        raise ValueError(
            f"x of shape {tuple(x.shape)} has no {k} principal components; pass (N, D), N ≥ 2 and N, D ≥ k"
        )
    centred = x.double() - x.double().mean(dim=0)
    # X = U·S·Vᵀ: coordinates along the rows of Vᵀ are U·S, and S² their variances times N − 1
    _, sigma, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:k]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    shares = sigma.square() / sigma.square().sum().clamp_min(1e-300)  # no spread at all: zeros
    return (centred @ (directions * largest.sign()).T).float(), shares[:k].float()


def embed_2d(x: Tensor, how: str = "pca", seed: int = 0, perplexity: float = 30.0) -> Tensor:
    """A map: two numbers for each embedding, float (N, D) → float32 (N, 2).

    Args:
        how: "pca", the first two of `principal`: a shadow of the cloud, distances in it are never too long.
            "tsne" (van der Maaten and Hinton 2008): neighbours stay neighbours, all else may move; started
            from PCA, so that seeds differ little. scikit-learn's, on the first 50 components.
        seed: of t-SNE.
        perplexity: of t-SNE: about how many neighbours count; it looks at three times as many.
    Raises:
        ValueError: another `how`, or no more than 3 · perplexity images for t-SNE.
    """
    if how == "pca":
        return principal(x, 2)[0]
    if how != "tsne":
        raise ValueError(f"how {how!r} is not known; choose one of: pca, tsne")
    if perplexity < 1 or len(x) <= 3 * perplexity:
        raise ValueError(
            f"perplexity {perplexity:g} needs more than {3 * perplexity:g} images, and here are {len(x)}; "
            f"choose one from 1 to {(len(x) - 1) // 3}, or pass more images"
        )
    from sklearn.manifold import TSNE  # here, because it takes a second to load

    scores = principal(x, min(50, *x.shape))[0].numpy()
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scores)
    return torch.from_numpy(found).float()


# ---- Layer by layer --------------------------------------------------------------------------------------


def depths(encoder: Encoder) -> list[str]:
    """Names of layers from a network's first to the one it is read at, as `layer_features` takes them.

    For torchvision's ResNets the stem, the four stages (the last one averaged, at "avgpool"); for a `Conv4`
    its blocks. Raises ValueError for any other network: name its layers yourself.
    """
    names = [name for name, _ in encoder.network.named_children()]
    if {"relu", "layer1", "layer4", "avgpool"} <= set(names):
        return ["relu", "layer1", "layer2", "layer3", "avgpool"]
    if names == ["blocks"]:
        return [f"blocks.{i}" for i in range(len(encoder.network.blocks))]
    raise ValueError(
        f"no depths are known for a {type(encoder.network).__name__}; name layers among: {', '.join(names)}"
    )


@torch.no_grad()
def layer_features(
    encoder: Encoder, store: ImageStore, image_size: int, layers: Sequence[str] | None = None, device="auto"
) -> dict[str, Tensor]:
    """Features at several depths of one encoder, from a single pass over the images.

    Args:
        layers: names as in `encoder.network.named_modules()`, or "pixels": the image itself, at most `PIXELS`
            a side. None: "pixels" and the encoder's `depths`.
    Returns:
        {layer: float32 (N, width)} on the CPU, in the order asked for. What `networks.tap` gives at the same
        layer: feature maps are averaged over their positions.
    Raises:
        ValueError: a layer that does not exist, or that the pass does not reach.
    """
    layers = ["pixels", *depths(encoder)] if layers is None else list(layers)
    modules = dict(encoder.network.named_modules())
    if unknown := [name for name in layers if name not in modules and name != "pixels"]:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"layer {unknown[0]!r} is not in the network; choose among: pixels, {known}")
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    seen: dict[str, Tensor] = {}

    def note(name: str):
        def hook(module, inputs, output):
            # at once, not after the pass: the next layer may work in place. A layer used twice: its first use
            seen.setdefault(name, flat(output).float().cpu())

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in layers if name != "pixels"]
    try:
        target = pick_device(device)
        with at_rest(encoder, target):
            for rows in torch.arange(len(store)).split(BATCH):
                images = store.batch(rows, target)
                seen.clear()
                encoder(in_channels(centre(images, image_size), getattr(encoder, "channels", 3)))
                if "pixels" in layers:
                    seen["pixels"] = centre(images, min(image_size, PIXELS)).flatten(1).cpu()
                if missing := [name for name in layers if name not in seen]:
                    raise ValueError(f"the pass ends before layer {missing[0]!r}; choose one before it")
                for name in layers:
                    parts[name].append(seen[name])
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(part) for name, part in parts.items()}


def layer_accuracy(
    encoder: Encoder,
    train: ImageStore,
    test: ImageStore,
    image_size: int,
    layers: Sequence[str] | None = None,
    linear: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """Accuracy by weighted kNN at several depths of one encoder, and by a linear probe where `linear`.

    Returns {layer: {"width": numbers an image, "knn": accuracy in [0, 1], "linear": the same}}.
    """
    train_x, test_x = (layer_features(encoder, each, image_size, layers, device) for each in (train, test))
    found = {}
    for name, x in train_x.items():
        judges = {"knn": knn(x, train.labels, test_x[name], k=min(20, len(x)))}
        if linear:
            judges["linear"] = linear_probe(x, train.labels, test_x[name])[0]
        right = {judge: (said == test.labels).float().mean().item() for judge, said in judges.items()}
        found[name] = {"width": x.shape[1], **right}
    return found


# ---- What it ignores -------------------------------------------------------------------------------------

NEUTRAL = Policy("neutral", "nothing changes", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_p=0.0)


def single_changes(policy: Policy = MOCO_V2) -> dict[str, Policy]:
    """Policies that change one thing each, always, and as strongly as `policy` does when it does.

    What `policy` leaves out (MoCo v2 does not solarize) takes the defaults of `Policy`; a part of the jitter
    of strength 0 stays out of the result.
    """
    blurred = {"blur_p": 1.0, "blur_sigma": policy.blur_sigma, "blur_kernel": policy.blur_kernel}
    parts = {"crop": {"crop_scale": policy.crop_scale, "crop_ratio": policy.crop_ratio}}
    parts["flip"] = {"flip_p": 1.0}
    for i, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        if policy.jitter[i]:
            strength = tuple(policy.jitter[i] if j == i else 0.0 for j in range(4))
            parts[name] = {"jitter": strength, "jitter_p": 1.0}
    parts |= {"greyscale": {"grey_p": 1.0}, "blur": blurred}
    parts["solarize"] = {"solarize_p": 1.0, "solarize_threshold": policy.solarize_threshold}
    return {name: replace(NEUTRAL, name=name, source=policy.name, **part) for name, part in parts.items()}


@torch.no_grad()
def invariance(
    encoder: nn.Module,
    images: Tensor,
    image_size: int,
    changes: dict[str, Policy] | None = None,
    draws: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """How far an embedding moves when one thing about its image changes.

    The distance is 1 − cosine between the embedding of the plain view and that of the changed one. Encoders
    differ in how far they set any two images apart, so distances of two encoders compare only as shares of
    that: 0 is an embedding that does not move, 1 one that moves as far as to another image.

    Args:
        images: uint8 (N, 3, H, W), N ≥ 2.
        changes: {name: policy}; None: `single_changes()`.
        draws: changed views of each image; its distance is their mean.
        seed: of the draws; every change and every encoder sees the same.
    Returns:
        {change: {"moved": mean distance over images, "between": mean distance of different images,
        "relative": moved / between, "q10", "q25", "median", "q75", "q90": quantiles over images, relative}}.
    Raises:
        ValueError: fewer than two images, or draws below 1.
    """
    if len(images) < 2 or draws < 1:
        raise ValueError(f"{len(images)} images and {draws} draws; pass at least 2 images and 1 draw")
    channels = getattr(encoder, "channels", 3)

    def embed(make) -> Tensor:
        parts = [encoder(in_channels(make(part.to(target)), channels)) for part in images.split(BATCH)]
        return F.normalize(torch.cat(parts).flatten(1).cpu().double(), dim=1)  # (N, D)

    target = pick_device(device)
    with at_rest(encoder, target):
        plain = embed(lambda part: centre(part, image_size))
        # the mean cosine over pairs of different images, from the length of the sum: no (N, N) matrix
        n, total = len(plain), plain.sum(dim=0).square().sum()
        between = (1 - (total - plain.square().sum()) / (n * (n - 1))).item()
        found = {}
        for name, policy in (single_changes() if changes is None else changes).items():
            generator = torch.Generator().manual_seed(seed)
            cosines = [
                (plain * embed(lambda part: views(part, policy, generator, image_size))).sum(dim=1)  # noqa: B023
                for _ in range(draws)
            ]
            moved = (1 - torch.stack(cosines).mean(dim=0)).clamp_min(0)  # (N,); rounding may leave −1e-17
            share = moved / max(between, 1e-12)  # all images in one point: nothing to compare with
            marks = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
            found[name] = {"moved": moved.mean().item(), "between": between, "relative": share.mean().item()}
            found[name] |= {mark: share.quantile(q).item() for mark, q in marks.items()}
    return found
