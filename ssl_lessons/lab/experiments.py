"""What the lessons train beside what they build: trials, baselines, and any method under a lesson's settings.

Each is kept in a folder and read from there when it is asked for again, so that lessons share it.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ssl_lessons import evaluate, networks
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam
from ssl_lessons.records import TITLES, Run
from ssl_lessons.training import Monitor, pretrain

METHODS = {"simclr": SimCLR, "moco": MoCo, "relational": Relational, "byol": BYOL, "simsiam": SimSiam}


def runs_folder() -> Path:
    """runs/ of the checkout that the package is used from, else of the working directory."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "runs"


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

    The settings are `network`, `view`, `stem`, `recipe`, `epochs`, `batch_size` (None: the recipe's), `seed`
    and `precision`; `evaluate.load_encoder` gives the encoder of what is returned.

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
    epochs, batch_size = lab.epochs, lab.batch_size
    if method in METHODS:
        learner = METHODS[method](plain, image_size=lab.view, recipe=lab.recipe)
    elif method == "supervised":
        epochs = lab.supervised_epochs
        learner = evaluate.Supervised(plain, len(store.classes), lab.view, batch_size=128)
    else:
        epochs, learner = 0, None
    network = {"name": built, "image_size": lab.view, "stem": lab.stem, "layer": None}
    if folder is None:
        what = (learner and learner.recipe, network, store.fingerprint, len(store), epochs, batch_size)
        shared = lab.run_dir if lab.profile == "smoke" else runs_folder()
        folder = shared / f"{method}-{store.name}-{_digest((*what, lab.seed, lab.precision))}"
    known = (folder / "record.json").exists()
    run = (
        Run.open(folder)
        if known
        else Run.create(folder, device=lab.device, profile=lab.profile, network=network)
    )
    before = run.record["seconds"]
    if learner is None:
        dataset = {name: getattr(store, name) for name in ("name", "split", "size", "fingerprint", "origin")}
        settings = {"epochs": 0, "batch_size": None, "precision": lab.precision, "seed": lab.seed}
        run.update(method=method, dataset={**dataset, "images": len(store)}, view_size=lab.view, **settings)
        run.save_encoder(plain)
    else:
        same = {"seed": lab.seed, "precision": lab.precision, "stop_on_collapse": False}
        same |= {"progress": progress, "monitor": monitor}
        pretrain(learner, store, epochs=epochs, batch_size=batch_size, run=run, **same)
    if known:
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
        build: makes the method; called right after the seed is set. measure: what to note of the trained
            method, {metric: value}. settings: more for `pretrain`.
    Returns:
        The run, `record["history"]` and `record["metrics"]` with what `measure` found.
    """
    torch.manual_seed(lab.seed)
    method = build()
    what = (type(method).__name__, method.recipe, store.fingerprint, len(store), epochs, batch_size, settings)
    folder = lab.run_dir / "trials" / f"{name}-{_digest((*what, lab.seed))}"
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
    """What every method is judged beside: {"random": metrics, "supervised": metrics}, each as `judge`'s.

    The network of the lesson's settings untrained, and trained with all labels for `supervised_epochs`. Kept
    in runs/, so that lessons with the same settings train it once between them.
    """
    names = ("network", "view", "stem", "supervised_epochs", "seed", "precision")
    what = {"batch_size": 128, **{name: getattr(lab, name) for name in names}}
    what |= {"train": train.fingerprint, "test": test.fingerprint, "images": len(train)}
    shared = lab.run_dir if lab.profile == "smoke" else runs_folder()
    folder = shared / f"baselines-{train.name}-{_digest(what)}"
    run = Run.open(folder) if (folder / "record.json").exists() else None
    if run is not None and run.record["metrics"]:
        print(f"baselines: read from {shared.name}/{folder.name}")
        lab.earlier += run.record["seconds"] + run.record["judging_seconds"]
    else:
        torch.manual_seed(lab.seed)
        plain = networks.build(lab.network, lab.view, lab.stem)
        teacher = evaluate.Supervised(plain, len(train.classes), lab.view)
        quiet = {"progress": "none", "seed": lab.seed, "run": folder}
        pretrain(teacher, train, epochs=lab.supervised_epochs, batch_size=min(128, len(train)), **quiet)
        run, begun = Run.open(folder), time.time()
        random = evaluate.random_encoder(lab.network, lab.view, lab.stem, lab.seed)
        for kind, encoder in (("random", random), ("supervised", teacher.encoder)):
            for name, metric in evaluate.judge(encoder, train, test, lab.view).items():
                run.record["metrics"][f"{name}_{kind}"] = metric
        run.update(judging_seconds=time.time() - begun)
    metrics = run.record["metrics"].items()
    kinds = ("random", "supervised")
    return {k: {n.removesuffix(f"_{k}"): m for n, m in metrics if n.endswith(f"_{k}")} for k in kinds}


def add_judgement(run: Run, metrics: dict[str, dict], beside: dict[str, dict]) -> None:
    """Write an encoder's metrics and those of its `baselines` into a run's record: knn, knn_random, …"""
    for end, found in (("", metrics), *((f"_{kind}", other) for kind, other in beside.items())):
        for name, metric in found.items():
            run.record["metrics"][f"{name}{end}"] = metric
    run.save()
