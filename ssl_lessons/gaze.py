"""Where an encoder looks: maps of an image that say which of its pixels an embedding hangs on.

Two methods that fail in different ways: a patch that hides a part is itself something new to see, and a
gradient says what the slightest change would do. As in inside.py, the encoder stays the same to the bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ssl_lessons.devices import pick_device
from ssl_lessons.inside import BATCH
from ssl_lessons.networks import at_rest
from ssl_lessons.views import centre, in_channels


@torch.no_grad()
def occlusion(
    encoder: nn.Module,
    images: Tensor,
    image_size: int,
    patch: int | None = None,
    stride: int | None = None,
    device: str = "auto",
) -> Tensor:
    """How far an embedding moves when a grey patch hides a part of its image (Zeiler and Fergus 2014).

    Args:
        images: uint8 (N, 3, H, W), looked at as `image_size` × `image_size` pixels.
        patch: the patch's side in pixels of that view; None: a quarter of it.
        stride: from one place to the next, in pixels; None: half a patch. The last place touches the edge.
    Returns:
        float32 (N, image_size, image_size) on the CPU: at each pixel the mean distance, 1 − cosine, over the
        places of the patch that hide it. Grey is the mean colour of ImageNet.
    Raises:
        ValueError: a patch or a stride that does not fit the view.
    """
    patch = max(1, image_size // 4) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if not 1 <= stride <= patch <= image_size:
        raise ValueError(
            f"a patch of {patch} pixels every {stride} in a view of {image_size}; "
            "choose 1 ≤ stride ≤ patch ≤ the view's side"
        )
    starts = sorted({*range(0, image_size - patch + 1, stride), image_size - patch})
    places = [(top, left) for top in starts for left in starts]
    hidden = torch.zeros(len(places), image_size, image_size)
    for mask, (top, left) in zip(hidden, places, strict=True):
        mask[top : top + patch, left : left + patch] = 1
    moved = []
    target = pick_device(device)
    with at_rest(encoder, target):
        for image in images:  # all places of one image are a batch, or a few
            view = in_channels(centre(image[None].to(target), image_size), getattr(encoder, "channels", 3))
            plain = encoder(view).flatten(1).cpu().double()  # 1 − cosine is small
            others = [
                encoder(view * (1 - part[:, None].to(target))).flatten(1)  # 0 is the mean colour, normalised
                for part in hidden.split(BATCH)
            ]
            cosines = F.cosine_similarity(torch.cat(others).cpu().double(), plain)  # (places,)
            moved.append((1 - cosines).clamp_min(0).float().cpu())
    return torch.einsum("np,phw->nhw", torch.stack(moved), hidden) / hidden.sum(dim=0)


def gradient_map(
    encoder: nn.Module,
    images: Tensor,
    image_size: int,
    towards: Tensor | None = None,
    draws: int = 8,
    noise: float = 0.1,
    sigma: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Tensor:
    """How strongly each pixel moves an embedding: the size of a gradient at the pixels, smoothed.

    The gradient of a cosine of an embedding with itself is zero, for it is at its greatest; so it is that of
    the embedding's length ‖f(x)‖, or of its cosine with another embedding.

    Args:
        images: uint8 (N, 3, H, W).
        towards: float (N, D): what each image's cosine is taken with, its neighbour's embedding, say.
        draws, noise: the mean over so many copies of each view with Gaussian noise, its deviation a share of
            the view's range (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825). One draw has no noise.
        sigma: of the Gaussian that smooths the map at last, in pixels; None: a 32nd of the view's side; 0:
            none.
        seed: of the noise.
    Returns:
        float32 (N, image_size, image_size) on the CPU: the sum over colours of |∂ / ∂ pixel|.
    Raises:
        ValueError: draws below 1, or `towards` of another number of rows.
    """
    if draws < 1 or (towards is not None and len(towards) != len(images)):
        rows = "no" if towards is None else len(towards)
        raise ValueError(f"{draws} draws, {rows} directions for {len(images)} images; pass ≥ 1, and one each")
    generator = torch.Generator().manual_seed(seed)
    target = pick_device(device)
    with at_rest(encoder, target), torch.enable_grad():
        plain = in_channels(centre(images.to(target), image_size), getattr(encoder, "channels", 3))
        spread = noise * (plain.amax(dim=(1, 2, 3)) - plain.amin(dim=(1, 2, 3)))  # (N,)
        total = torch.zeros(len(plain), image_size, image_size, device=target)
        for _ in range(draws):
            drawn = torch.randn(plain.shape, generator=generator).to(target)
            view = plain + spread.view(-1, 1, 1, 1) * drawn if draws > 1 else plain.clone()
            found = encoder(view.requires_grad_()).flatten(1)  # (N, D)
            if towards is None:
                score = found.norm(dim=1)
            else:
                score = F.cosine_similarity(found, towards.to(target), dim=1)
            (gradient,) = torch.autograd.grad(
                score.sum(), view
            )  # images do not touch one another in eval mode
            total += gradient.abs().sum(dim=1) / draws
    sigma = image_size / 32 if sigma is None else sigma
    if sigma:
        width = 2 * min(round(3 * sigma), (image_size - 1) // 2) + 1
        total = gaussian_blur(total[:, None], width, sigma)[:, 0]
    return total.float().cpu()
