"""What the lessons train beside what they build: trials, baselines, and any method under a lesson's settings.

Each is kept in a folder and read from there when it is asked for again, so that lessons share it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ssl_lessons import evaluate, networks
from ssl_lessons.images import ImageStore
from ssl_lessons.lab.evidence import YARDSTICKS
from ssl_lessons.methods.base import Method, views_of
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam
from ssl_lessons.records import TITLES, Run, results_folder, source_of
from ssl_lessons.training import Monitor, pretrain

METHODS = {"simclr": SimCLR, "moco": MoCo, "relational": Relational, "byol": BYOL, "simsiam": SimSiam}


def runs_folder() -> Path:
    """Where runs, baselines and trials are kept: $SSL_LESSONS_RUNS where it is set; else runs/ of the
    checkout that the package is used from, or of the working directory where there is none."""
    chosen = os.environ.get("SSL_LESSONS_RUNS")
    if chosen:
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "runs"


def open_run(lab: SimpleNamespace, folder: Path | None = None, **facts) -> Run:
    """The run in a lesson's folder, to go on with; a new one where there is none.

    Args:
        folder: another one than `lab.run_dir`. facts: what a new record holds beside, or instead of, the
            lesson's device, profile and network.
    """
    folder = folder or lab.run_dir
    network = {"name": lab.network, "image_size": lab.view, "stem": lab.stem}
    return Run.at(folder, **{"device": lab.device, "profile": lab.profile, "network": network, **facts})


def _shared(lab: SimpleNamespace, name: str, what) -> Path:
    """The folder of something that lessons share, told apart by `what`; a smoke test shares nothing."""
    return (lab.run_dir if lab.profile == "smoke" else runs_folder()) / f"{name}-{_digest(what)}"


def _digest(values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def trained(
    lab: SimpleNamespace,
    method: str,
    store: ImageStore,
    *,
    folder: Path | None = None,
    progress: str = "none",
    monitor: Monitor | None = None,
) -> Run:
    """One method trained under a lesson's settings, or read from disk where that has been done.

    The settings are `network`, `view`, `stem`, `recipe`, `epochs`, `batch_size` (None: the recipe's), `seed`,
    `precision` and, in place of the recipe's, `lr` and `temperature`; `evaluate.load_encoder` gives the
    encoder of what is returned.

    Args:
        method: one of `METHODS`, "supervised" (`lab.supervised_epochs` passes over one view of each image,
            with all labels), "random" (nothing is trained), or "pixels" and "colours" (there is no network).
        folder: where the run is kept; None for one in runs/ that all lessons share. monitor: as `pretrain`'s.
    Raises:
        ValueError: an unknown method (the message lists the known ones).
    """
    if method not in TITLES:
        raise ValueError(f"method {method!r} is not known; choose one of: {', '.join(TITLES)}")
    torch.manual_seed(lab.seed)  # the initial weights are the same for every method
    built = method if method in networks.RULERS else lab.network
    plain = networks.build(built, lab.view, lab.stem)
    epochs, batch_size, learner = lab.epochs, lab.batch_size, None
    if method in METHODS:
        own = {name: getattr(lab, name, None) for name in ("lr", "temperature")}  # of a grid that sweeps them
        own = {name: value for name, value in own.items() if value is not None}
        learner = METHODS[method](plain, image_size=lab.view, recipe=lab.recipe, **own)
    elif method == "supervised":
        epochs = lab.supervised_epochs
        learner = evaluate.Supervised(plain, len(store.classes), lab.view, batch_size=128)
    else:
        epochs = 0
    network = {"name": built, "image_size": lab.view, "stem": lab.stem, "layer": None}
    if folder is None:
        recipe = learner and learner.recipe
        what = (recipe, network, store.fingerprint, len(store), epochs, batch_size, lab.seed, lab.precision)
        folder = _shared(lab, f"{method}-{store.name}", what)
    run = open_run(lab, folder, network=network)
    before = run.record["seconds"]
    if learner is None:
        settings = {"epochs": 0, "batch_size": None, "precision": lab.precision, "seed": lab.seed}
        run.update(method=method, dataset=store.facts, view_size=lab.view, **settings)
        run.save_encoder(plain)
    else:
        same = {"seed": lab.seed, "precision": lab.precision, "stop_on_collapse": False}
        same |= {"progress": progress, "monitor": monitor}
        pretrain(learner, store, epochs=epochs, batch_size=batch_size, run=run, **same)
    if before:  # trained in an earlier session
        lab.earlier += before if folder != lab.run_dir else 0.0  # `setup` has counted what is there
        print(f"{method}: {before / 60:.1f} min of training read from {folder.name}")
    return run


def trial(
    lab: SimpleNamespace,
    name: str,
    build: Callable[[], Method],
    store: ImageStore,
    *,
    epochs: int,
    measure: Callable[[Method], dict[str, float]],
    batch_size: int = 128,
    **settings,
) -> Run:
    """One small experiment of a lesson, kept in its run's folder: run again, it is read instead of repeated.

    Args:
        build: makes the method; called right after the seed is set; its class's source is part of the
            trial's name, once it is not the package's. measure: what to note of the trained method, {metric:
            value}. settings: more for `pretrain`.
    Returns:
        The run, `record["history"]` and `record["metrics"]` with what `measure` found.
    """
    torch.manual_seed(lab.seed)
    method = build()
    kind = type(method)
    what = [
        kind.__name__,
        method.recipe,
        store.fingerprint,
        len(store),
        epochs,
        batch_size,
        {key: value for key, value in settings.items() if not callable(value)},
        lab.seed,
        repr(method),
        method.image_size,
        views_of(method),
    ]
    source = source_of(kind)
    if source:  # a class of the learner's own: edited, it is another trial
        what.append(source)
    folder = lab.run_dir / "trials" / f"{name}-{_digest(what)}"
    run = Run.open(folder) if (folder / "record.json").exists() else None
    if run is not None and run.record["metrics"]:
        print(f"{name}: read from {lab.run_dir.name}/trials (delete it to repeat the experiment)")
        lab.earlier += run.record["seconds"]
    else:
        quiet = {"progress": "none", "stop_on_collapse": False, "seed": lab.seed, "run": folder}
        pretrain(method, store, epochs=epochs, batch_size=batch_size, **quiet, **settings)
        run = Run.open(folder)
        for metric, value in measure(method).items():
            protocol = f"trial {name} of lesson {lab.lesson}, seed {lab.seed}"
            run.add_metric(metric, float(value), protocol=protocol)
    lab.trials[name] = run
    return run


def knn_of(encoder: nn.Module, train: ImageStore, test: ImageStore, view: int) -> float:
    """kNN accuracy of an encoder, in [0, 1], on views of `view` pixels."""
    return evaluate.judge(encoder, train, test, view, fractions=())["knn"]["value"]


def baselines(lab: SimpleNamespace, train: ImageStore, test: ImageStore) -> dict[str, dict]:
    """What every method is judged beside, {"random": metrics, "pixels": …, "colours": …, "supervised": …}.

    Each is `judge`'s: of the lesson's network before training, of raw pixels, of counted colours, and of the
    network trained with all labels. Read from the committed leaderboard where that has them for the same
    images, views and network; else measured here and kept in runs/ for all lessons.
    """
    if (
        lab.profile == "smoke"
    ):  # that they can be measured is tested; a probe on thousands of pixels takes long
        train, test = (store.subset(torch.arange(min(200, len(store)))) for store in (train, test))
    names = ("network", "view", "stem", "supervised_epochs", "seed", "precision")
    what = {"batch_size": 128, **{name: getattr(lab, name) for name in names}}
    what |= {"train": train.fingerprint, "test": test.fingerprint, "images": len(train)}
    folder = _shared(lab, f"yardsticks-{train.name}", what)
    metrics = _committed_yardsticks(lab, train)
    missing = [kind for kind in YARDSTICKS if kind not in metrics]
    if missing:
        run = Run.at(folder, device=lab.device, profile=lab.profile)
        if any(f"knn_{kind}" not in run.record["metrics"] for kind in missing):
            _measure_yardsticks(lab, run, missing, train, test)
        else:
            print(f"baselines: read from {folder.parent.name}/{folder.name}")
            lab.earlier += run.record["seconds"] + run.record["judging_seconds"]
        for name, metric in run.record["metrics"].items():
            name, kind = name.rsplit("_", 1)
            metrics.setdefault(kind, {})[name] = metric
    return {kind: metrics[kind] for kind in YARDSTICKS}


def _committed_yardsticks(lab: SimpleNamespace, train: ImageStore) -> dict[str, dict]:
    """The rows of data/results/leaderboard of these images and views, and of this network or of none."""
    metrics = {}
    for path in sorted((results_folder() / "leaderboard").glob("*-0.json")):
        row = Run.open(path).record
        kind, network = row["method"].lower(), row["network"]["name"]
        same = row["dataset"]["fingerprint"] == train.fingerprint and row["dataset"]["images"] == len(train)
        same = same and row["view_size"] == lab.view
        fits = network in networks.RULERS or (network, row["network"]["stem"]) == (lab.network, lab.stem)
        if kind in YARDSTICKS and same and fits:
            metrics[kind] = row["metrics"]
            print(f"{kind}: read from {path.parent.name}/{path.name}")
    return metrics


def _measure_yardsticks(lab: SimpleNamespace, run: Run, missing, train: ImageStore, test: ImageStore) -> None:
    judging = run.record.get("judging_seconds", 0.0)
    for kind in missing:
        if f"knn_{kind}" in run.record["metrics"]:  # of a call that was cut off
            continue
        if kind == "supervised":
            torch.manual_seed(lab.seed)
            plain = networks.build(lab.network, lab.view, lab.stem)
            learner = evaluate.Supervised(plain, len(train.classes), lab.view)
            quiet = {"progress": "none", "seed": lab.seed, "run": run}
            pretrain(learner, train, epochs=lab.supervised_epochs, batch_size=min(128, len(train)), **quiet)
            encoder = learner.encoder
        else:
            name = lab.network if kind == "random" else kind
            encoder = evaluate.random_encoder(
                name, lab.view, lab.stem if kind == "random" else None, lab.seed
            )
        begun = time.time()
        for name, metric in evaluate.judge(encoder, train, test, lab.view).items():
            run.record["metrics"][f"{name}_{kind}"] = metric
        judging += time.time() - begun
        run.update(judging_seconds=judging)


def add_judgement(run: Run, metrics: dict[str, dict], beside: dict[str, dict]) -> None:
    """Write an encoder's metrics and those of its `baselines` into a run's record: knn, knn_random, …"""
    run.record["metrics"].update(metrics)
    for kind, others in beside.items():
        run.record["metrics"].update({f"{name}_{kind}": metric for name, metric in others.items()})
    run.save()
