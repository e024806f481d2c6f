"""Exercise 00.2, counting colours: its solution, cases, and known mistakes."""

import torch


def counted(pictures, box_of=lambda r, g, b: (r * 8 + g) * 8 + b, levels=8):
    red, green, blue = (pictures.long() * levels // 256).unbind(1)
    box = box_of(red, green, blue).flatten(1)
    counts = torch.zeros(len(box), 512).scatter_add_(1, box, torch.ones(box.shape))
    return counts / box.shape[1]


def colour_case(seed):
    make = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (4, 3, 6, 5), generator=make, dtype=torch.uint8),)


colour_mistakes = {
    "counts, not shares: divide by the number of pixels": lambda p: counted(p) * p[0, 0].numel(),
    "divided by three times too many: a pixel with its three colours counts once": lambda p: counted(p) / 3,
    "red + green + blue as the box: different colours fall together": (
        lambda p: counted(p, lambda r, g, b: r + g + b)
    ),
    "blue weighs 64 and red 1: the box is (red · 8 + green) · 8 + blue": (
        lambda p: counted(p, lambda r, g, b: (b * 8 + g) * 8 + r)
    ),
    "red and green both weigh 8: brackets are missing, (red · 8 + green) · 8": (
        lambda p: counted(p, lambda r, g, b: r * 8 + g * 8 + b)
    ),
    "one count for the whole batch: each picture needs its own": (
        lambda p: counted(p).mean(0, keepdim=True).expand(len(p), -1)
    ),
    "four levels, not eight: divide by 32": lambda p: counted(p, levels=4),
    "uint8 overflows at 255: convert to long before the box is computed": (
        lambda p: counted(p, lambda r, g, b: ((r * 8 + g) * 8 % 256 + b) % 256)
    ),
    "the root was taken already: return the shares": lambda p: counted(p).sqrt(),
}


EXERCISE = {
    "solution": counted,
    "case": colour_case,
    "mistakes": colour_mistakes,
}
