"""The lessons' experiments at the scale of minutes: what each asks, its arms, and a verdict over three seeds.

    python notebooks/grids/experiments.py --plan PLAN.json [NAME ...]      what is to be run
    python notebooks/grids/trials.py PLAN.json --out data/results/experiments.jsonl
    python notebooks/grids/experiments.py --table                          data/results/EXPERIMENTS.md

(Or together.py on a GPU, whose FOLDER/trials.jsonl is then appended to experiments.jsonl.) Judged as trials
are, on a held-out fifth of the training images. Arms do equal work: as many views go through each network.
Where a rate may suit one arm and not another, an arm is a list of settings, and the one with the best mean
stands for it.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import trials

from ssl_lessons.lab.evidence import arms, mean_error, verdict

SEEDS = (0, 1, 2)
EPOCHS = 12  # of two views each: 91,000 images
LONG = 24  # for what learns without negatives, which at 12 is still below counted colours
PLAIN = {"jitter": [0, 0, 0, 0], "grey_p": 0.0}  # crops and flips alone
STANDARD = {"jitter": [0.4, 0.4, 0.4, 0.1], "grey_p": 0.2}
GENTLE = {"jitter": [0.2, 0.2, 0.2, 0.05], "grey_p": 0.0}
STRONG = {"jitter": [0.8, 0.8, 0.8, 0.2], "grey_p": 0.2}
BLURRED = {"blur_p": 1.0, "blur_sigma": [0.1, 0.7]}


def rates(*values: float, **settings) -> list[dict]:
    """The same settings at each of some learning rates."""
    fields = settings.pop("fields", {})
    return [{**settings, "fields": {**fields, "lr": rate}} for rate in values]


def fields(method: str, **values) -> dict:
    epochs = LONG if method in ("byol", "simsiam") else EPOCHS
    return {"method": method, "epochs": epochs, "fields": values}


# name: (lesson, question, {arm: settings of a trial, or a list of them})
EXPERIMENTS = {
    "depth": (
        "02",
        "Does a deeper network learn more in a short run?",
        {
            "ResNet-10, half width": {},
            "ResNet-18, half width": {"network": {"blocks": [2, 2, 2, 2]}},
        },
    ),
    "batch": (
        "02, 05",
        "Which suffers more from a small batch, SimCLR or BYOL?",
        {
            f"{title}, {size}": rates(*values, method=method, batch_size=size, epochs=epochs)
            for title, method, epochs in (("SimCLR", "simclr", EPOCHS), ("BYOL", "byol", LONG))
            for size, values in ((32, (5e-4, 1e-3)), (128, (5e-4, 1e-3)), (512, (1e-3, 2e-3)))
        },
    ),
    "temperature": (
        "02",
        "How sharp should SimCLR's softmax be?",
        {str(t): fields("simclr", temperature=t) for t in (0.05, 0.1, 0.2, 0.5)},
    ),
    "projector": (
        "02",
        "Where to read the representation, before or after SimCLR's projector?",
        {where: {"judged": judged} for where, judged in (("before", "encoder"), ("after", "projector"))},
    ),
    "augmentation": (
        "05",
        "Which needs colour jitter and greyscale more, SimCLR or BYOL?",
        {
            f"{title}, {name}": {"method": method, "policy": policy, "epochs": LONG}
            for title, method in (("SimCLR", "simclr"), ("BYOL", "byol"))
            for name, policy in (("crops alone", PLAIN), ("gentle", GENTLE), ("standard", STANDARD))
        },
    ),
    "queue": (
        "03",
        "Does a longer queue help MoCo?",
        {str(length): fields("moco", queue=length) for length in (256, 1024, 4096)},
    ),
    "keys": (
        "03",
        "How slow should MoCo's key encoder be?",
        {str(m): fields("moco", momentum=m) for m in (0.0, 0.9, 0.99, 0.999)},
    ),
    "leak": (
        "03",
        "Does BatchNorm leak, and do eight parts with shuffled keys stop it?",
        {f"{n} part{'s' * (n > 1)}": fields("moco", splits=n) for n in (1, 8)},
    ),
    "v1 to v2": (
        "03",
        "Which of MoCo v2's changes helps?",
        {
            "v1: linear head, τ 0.07": fields("moco", head=[128], temperature=0.07),
            "MLP head, τ 0.07": fields("moco", temperature=0.07),
            "MLP head, τ 0.1": fields("moco"),
            "MLP head, τ 0.2": fields("moco", temperature=0.2),
        },
    ),
    "views": (
        "04",
        "At equal work, how many views of each image?",
        {
            f"K {views}": {"method": "relational", "fields": {"views": views}, "epochs": 2 * EPOCHS // views}
            for views in (2, 4, 8)
        },
    ),
    "colour trap": (
        "04",
        "What if colour may answer 'the same image or not'?",
        {
            name: {"method": "relational", "policy": policy, "epochs": EPOCHS // 2}
            for name, policy in (
                ("crops alone", PLAIN),
                ("gentle", GENTLE),
                ("standard", STANDARD),
                ("strong", STRONG),
            )
        },
    ),
    "ruler": (
        "04",
        "Does it help to learn the ruler: a relation head, or a cosine?",
        {
            name: {"method": "relational", "fields": {"ruler": ruler}, "epochs": EPOCHS // 2}
            for name, ruler in (("relation head", "head"), ("cosine", "cosine"))
        },
    ),
    "target": (
        "05",
        "How slow should BYOL's target be?",
        {
            f"τ {tau}": fields("byol", momentum=tau, lag=None, momentum_schedule="constant")
            for tau in (0.0, 0.9, 0.97, 0.99, 0.996, 1.0)
        },
    ),
    "predictor's rate": (
        "05",
        "How quickly should BYOL's predictor learn?",
        {f"× {scale}": fields("byol", predictor_lr=float(scale)) for scale in (1, 3, 10, 30)},
    ),
    "normalisation": (
        "05",
        "Does BYOL need BatchNorm?",
        {
            kind: rates(5e-4, 1e-3, **fields("byol", normalisation=kind))
            for kind in ("batch", "group", "none")
        },
    ),
    "two policies": (
        "05",
        "Does it help BYOL that T and T′ differ?",
        {
            "T = T′": {"method": "byol", "epochs": LONG, "policy": {**STANDARD, **BLURRED, "blur_p": 0.5}},
            "T ≠ T′": {
                "method": "byol",
                "epochs": LONG,
                "policy": {**STANDARD, **BLURRED},
                "policy_prime": {**STANDARD, **BLURRED, "blur_p": 0.1, "solarize_p": 0.2},
            },
        },
    ),
    "parts": (
        "06",
        "What of SimSiam can be taken away?",
        {
            "whole": fields("simsiam"),
            "without the stop-gradient": fields("simsiam", without="stop-gradient"),
            "without the predictor": fields("simsiam", without="predictor"),
            "without BatchNorm in the heads": fields("simsiam", without="BatchNorm"),
        },
    ),
}


def plan(names: list[str]) -> list[dict]:
    """The trials of some experiments (none named: all), seed by seed."""
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise SystemExit(f"no experiment {unknown[0]!r}; there are: {', '.join(EXPERIMENTS)}")
    listed = []
    for seed in SEEDS:
        for name in names or EXPERIMENTS:
            for arm, settings in EXPERIMENTS[name][2].items():
                for number, setting in enumerate(settings if isinstance(settings, list) else [settings]):
                    mark = {"note": f"{name}: {arm}", "alternative": number, "seed": seed, "every": LONG}
                    batch = {"batch_size": 64} if setting.get("method") == "relational" else {}
                    listed.append({"recipe": "short", "epochs": EPOCHS, **batch, **setting, **mark})
    return listed


HEAD = """# Experiments

Written by `python notebooks/grids/experiments.py --table` from
[experiments.jsonl](experiments.jsonl). Recipes `short`, `resnet10_half` at 32 px, Imagenette; kNN
(k 20, t 0.07, backbone, last epoch) in per cent on a held-out fifth of the training images, mean ±
standard error over seeds. Arms do equal work. An effect is a difference between the best and the
worst arm of more than two of its standard errors; with three seeds that is no strict test, and the
best arm is chosen after the fact: read a gap of a point as nothing.
"""


def table(lines: list[dict]) -> str:
    """EXPERIMENTS.md."""
    text, summary, missing = [], [], []
    for name, (lesson, question, _) in EXPERIMENTS.items():
        found = arms(name, lines)
        if len(found) < 2:
            missing.append(name)
            continue
        said = verdict(found)
        summary += [f"| {lesson} | {question} | {said} |"]
        text += [f"## {question}", "", f"Lesson {lesson}, `{name}`.", ""]
        text += [
            "| arm | kNN | random encoder | seeds | thousand images | device |",
            "|---|--:|--:|--:|--:|---|",
        ]
        for arm, some in found.items():
            mean, error = mean_error([line["knn"] for line in some])
            random = 100 * statistics.fmean(line["knn_random"] for line in some)
            rate = some[0]["fields"].get("lr")
            title = arm if rate is None else f"{arm}, rate {rate:g}"
            near = f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}"
            devices = "; ".join(dict.fromkeys(line["device"] for line in some))
            work = f"{len(some)} | {some[0]['images_seen'] / 1000:.0f} | {devices}"
            text.append(f"| {title} | {near} | {random:.1f} | {work} |")
        text += ["", f"**{said}**", ""]
    if missing:
        text += ["## Not run yet", "", ", ".join(f"`{name}`" for name in missing) + "."]
    head = [HEAD, "| lesson | question | verdict |", "|---|---|---|", *summary, ""]
    return "\n".join(head + text).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=trials.RAW)
    parser.add_argument("names", nargs="*", help="experiments; none: all")
    parser.add_argument("--plan", type=Path, help="write their trials there")
    parser.add_argument("--table", action="store_true", help="write EXPERIMENTS.md from experiments.jsonl")
    arguments = parser.parse_args()
    if arguments.plan:
        arguments.plan.write_text(json.dumps(plan(arguments.names), indent=1), encoding="utf-8")
        print(f"{len(plan(arguments.names))} trials")
    if arguments.table:
        rows = (trials.RESULTS / "experiments.jsonl").read_text(encoding="utf-8").splitlines()
        text = table([json.loads(row) for row in rows])
        (trials.RESULTS / "EXPERIMENTS.md").write_text(text, encoding="utf-8")
