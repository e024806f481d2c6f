"""The evening run: one method for as long as an evening lasts, checkpointed; its encoder is then published.

    python notebooks/grids/evening.py moco imagenette --epochs 90 --view 64 --size 80
    python notebooks/grids/evening.py --table                        data/weights/README.md

Recipe `short`, network `resnet10_half`. Run again with the same words, a run goes on from its last finished
epoch. When it has ended, the last epoch's encoder is judged on the test images by `evaluate.report`, beside
counted colours and the network before training at the same size, and goes with its record into data/weights.
"""

import argparse
import json
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter
NETWORK = "resnet10_half"
HEAD = """# Weights

Encoders of runs that are too long for a class: `resnet10_half`, recipe `short`, floats in half precision.
Beside each lies its run's record: settings, images, curve, accuracies, and the sha256 of the weights. One
call loads an encoder, and refuses it when the hash differs:

```python
from ssl_lessons import evaluate

encoder = evaluate.pretrained("moco-imagenette")  # float views (B, 3, S, S) -> features (B, 256)
```

The table is written by `python notebooks/grids/evening.py --table` from the records: seed 0, last epoch,
frozen backbone, test images, in per cent. "Colours" and "random" are the kNN accuracies of counted colours
and of the network before training on pictures of the same size. Minutes are those of training; runs marked
"beside others" shared their machine with other work, and their minutes say nothing.
"""


def ruler(name: str, train, test, view: int, seed: int) -> dict:
    """The metrics of what was not trained: counted "colours", or the "random" network."""
    from ssl_lessons import evaluate

    encoder = evaluate.random_encoder(NETWORK if name == "random" else name, view, seed=seed)
    return evaluate.report(encoder, train, test, view, seed=seed)


def run(arguments) -> None:
    """Train, or go on; judge; publish."""
    import torch

    from ssl_lessons import Run, evaluate, images, lab, networks, pretrain
    from ssl_lessons.records import device_name

    method, dataset, view, seed = arguments.method, arguments.dataset, arguments.view, arguments.seed
    train, test = (images.load(dataset, split, arguments.size, progress=False) for split in ("train", "test"))
    torch.manual_seed(seed)
    network = networks.build(NETWORK, view)
    learner = lab.METHODS[method](network, image_size=view, recipe="short")
    folder = Path(arguments.out, f"{method}-{dataset}-{arguments.epochs}-{view}")
    facts = {"name": NETWORK, "image_size": view, "stem": None, "layer": None}
    kept = Run.at(folder, device=torch.device(arguments.device), profile="evening", network=facts)
    watch = evaluate.knn_monitor(train, test, view)  # a curve to look at; nothing is chosen by it
    settings = {"epochs": arguments.epochs, "seed": seed, "device": arguments.device, "run": kept}
    pretrain(learner, train, monitor=watch, monitor_every=5, progress="lines", **settings)
    publish(folder, arguments.name or f"{method}-{dataset}", train, test, Path(arguments.weights), seed)
    print(f"{folder} on {device_name(torch.device(arguments.device))}: published")


def publish(folder: Path, name: str, train, test, weights: Path, seed: int = 0, note: str = "") -> None:
    """Judge a finished run's encoder beside the rulers, and write it to the folder of weights."""
    from ssl_lessons import Run, evaluate, lab

    kept = Run.open(folder)
    view = kept.record["view_size"]
    encoder = evaluate.load_encoder(kept)
    beside = {kind: ruler(kind, train, test, view, seed) for kind in ("colours", "random")}
    lab.add_judgement(kept, evaluate.report(encoder, train, test, view, seed=seed), beside)
    if note:
        kept.record["note"] = note
    kept.publish(weights, name, encoder.network)


def table(weights: Path) -> str:
    """data/weights/README.md."""
    from ssl_lessons.records import TITLES

    text = [HEAD]
    columns = ["name", "method", "epochs", "thousand images", "px", "kNN", "linear", "linear 10 %"]
    columns += ["colours", "random", "minutes", "device"]
    text += [f"| {' | '.join(columns)} |", "|---|---|" + "--:|" * 9 + "---|"]
    for path in sorted(weights.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        metrics = record["metrics"]
        names = ("knn", "linear_100", "linear_10", "knn_colours", "knn_random")
        values = [f"{100 * metrics[name]['value']:.1f}" if name in metrics else "–" for name in names]
        seen = record["epochs"] * (record["dataset"]["images"] // record["batch_size"]) * record["batch_size"]
        minutes = record.get("note") or f"{record['seconds'] / 60:.0f}"
        title = TITLES.get(record["method"].lower(), record["method"])
        work = f"{record['epochs']} | {seen / 1000:.0f} | {record['view_size']}"
        where = f"{minutes} | {record['device']}, {record['precision']}"
        text.append(f"| `{path.stem}` | {title} | {work} | {' | '.join(values)} | {where} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("method", nargs="?")
    parser.add_argument("dataset", nargs="?", default="imagenette")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--view", type=int, default=64, help="side of the views, pixels")
    parser.add_argument("--size", type=int, default=80, help="side of the stored images, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default=str(root / "runs" / "evening"))
    parser.add_argument("--weights", default=str(root / "data" / "weights"))
    parser.add_argument("--name", help="of the weights; METHOD-DATASET where it is left out")
    parser.add_argument("--table", action="store_true", help="write data/weights/README.md")
    arguments = parser.parse_args()
    if arguments.method:
        run(arguments)
    if arguments.table:
        (Path(arguments.weights) / "README.md").write_text(table(Path(arguments.weights)), encoding="utf-8")
