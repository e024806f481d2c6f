"""README's picture: images with two views each, and the accuracies of lesson 03's committed records.

Run `python tests/benchmarks/overview.py`; it writes data/results/overview.png.
"""

import matplotlib.pyplot as plt
import torch

from ssl_lessons import figures, images, lab
from ssl_lessons.records import results_folder
from ssl_lessons.views import MOCO_V2, unnormalise, views

ENCODERS = {"knn_random": "random", "knn": "MoCo v2, no labels", "knn_supervised": "supervised"}
DATASETS = ("shapes", "imagenette", "imagewoof")


def draw_views(subfigure) -> None:
    """Eight images in a row, and two random views below each."""
    batch = images.load("shapes", "train", 64).batch(torch.arange(40, 48))  # (8, 3, 64, 64) uint8
    generator = torch.Generator().manual_seed(3)
    rows = {"image": batch.float() / 255}
    for name in ("view 1", "view 2"):
        rows[name] = unnormalise(views(batch, MOCO_V2, generator, 64)).clamp(0, 1)
    grid = subfigure.subplots(len(rows), len(batch))
    for (name, pictures), row in zip(rows.items(), grid, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center")


def draw_accuracies(axis) -> None:
    """kNN accuracy of three encoders on each dataset."""
    for i, (metric, encoder) in enumerate(ENCODERS.items()):
        heights = []
        for dataset in DATASETS:
            name = f"03-{dataset}-class"
            heights.append(100 * lab.results(name)[name].record["metrics"][metric]["value"])
        places = [place + 0.27 * (i - 1) for place in range(len(DATASETS))]
        colour = (figures.GREY, figures.BLUE, figures.SKY)[i]
        axis.bar_label(axis.bar(places, heights, 0.25, label=encoder, color=colour), fmt="%.0f", fontsize=9)
    axis.set_xticks(range(len(DATASETS)), DATASETS)
    axis.set(ylabel="kNN accuracy (%)", ylim=(0, 100))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, fontsize=9, frameon=False)


if __name__ == "__main__":
    figure = plt.figure(figsize=(12, 3.4), layout="constrained", dpi=100)
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    draw_views(left)
    draw_accuracies(right.subplots())
    figure.savefig(results_folder() / "overview.png")
