"""What the lessons train beside what they build: trials, baselines, any method under a lesson's settings.
Each is kept in a folder and read from there when it is asked for again, so that lessons share it."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from ssl_lessons import evaluate, networks, records
from ssl_lessons.images import ImageStore
from ssl_lessons.lab.evidence import YARDSTICKS
from ssl_lessons.methods import byol, moco, relational, simclr, simsiam
from ssl_lessons.methods.base import Method
from ssl_lessons.parameters import Unknown, folder, known
from ssl_lessons.records import TITLES, RecordError, Run, results_folder
from ssl_lessons.training import Monitor, pretrain

METHODS = {"simclr": simclr.SimCLR, "moco": moco.MoCo, "relational": relational.Relational}
METHODS |= {"byol": byol.BYOL, "simsiam": simsiam.SimSiam}


def runs_folder() -> Path:
    """Where runs, baselines and trials are kept: $SSL_LESSONS_RUNS where it is set; else runs/ of the
    checkout that the package is used from, or of the working directory where there is none."""
    chosen = os.environ.get("SSL_LESSONS_RUNS")
    if not chosen:
        checkout = Path(__file__).resolve().parents[2]
        return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "runs"
    runs = folder(chosen)
    if not runs.is_absolute():  # a kernel works in another folder than the command that starts it
        raise Unknown(f"SSL_LESSONS_RUNS is {chosen!r}; name a folder by its whole path, {runs.absolute()}")
    return runs


def digest(values) -> str:
    """Eight letters that tell settings apart, for the name of a folder."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _shared(lab: SimpleNamespace, name: str, settings) -> Path:
    """The folder of something that lessons share, told apart by `settings`; a smoke test shares nothing."""
    return (lab.run_dir if lab.profile == "smoke" else runs_folder()) / f"{name}-{digest(settings)}"


def open_run(lab: SimpleNamespace, folder: Path | None = None, **facts) -> Run:
    """The run in a lesson's folder (or another one), to go on with; a new one where there is none. `facts`:
    what a new record holds beside, or instead of, the lesson's device, profile and network."""
    network = {"name": lab.network, "image_size": lab.view, "stem": lab.stem}
    facts = {"device": lab.device, "profile": lab.profile, "network": network, **facts}
    return Run.at(folder or lab.run_dir, **facts)


def trained(
    lab: SimpleNamespace,
    method: str,
    store: ImageStore,
    *,
    folder: Path | None = None,
    progress: str = "none",
    monitor: Monitor | None = None,
) -> Run:
    """One method trained under a lesson's settings: `network`, `view`, `stem`, `recipe`, `epochs`, `seed`,
    `precision`, `batch_size` (None: the recipe's), `lr` and `temperature` in place of the recipe's; or read
    from disk where that has been done. `evaluate.load_encoder` gives the encoder of what is returned.

    Args:
        method: one of `METHODS`, "supervised" (`lab.supervised_epochs` passes over one view of each image,
            with all labels), "random" (nothing is trained), or "pixels" and "colours" (there is no network);
            Unknown, a ValueError, for another.
        folder: where the run is kept; None for one in runs/ that all lessons share. monitor: as `pretrain`'s.
    """
    known("method", method, TITLES)
    torch.manual_seed(lab.seed)  # the initial weights are the same for every method
    name = method if method in networks.RULERS else lab.network
    network = {"name": name, "image_size": lab.view, "stem": lab.stem, "layer": None}
    plain = networks.build(name, lab.view, lab.stem)
    learner, recipe, epochs = None, None, 0
    if method in METHODS:
        swept = {name: vars(lab).get(name) for name in ("lr", "temperature")}  # by a grid
        swept = {name: value for name, value in swept.items() if value is not None}
        learner = METHODS[method](plain, image_size=lab.view, recipe=lab.recipe, **swept)
        recipe, epochs = learner.recipe, lab.epochs
    elif method == "supervised":
        learner = evaluate.Supervised(plain, len(store.classes), lab.view, batch_size=128)
        recipe, epochs = learner.recipe, lab.supervised_epochs
    if folder is None:
        settings = [recipe, network, store.fingerprint, len(store), epochs]
        settings += [lab.batch_size, lab.seed, lab.precision]
        folder = _shared(lab, f"{method}-{store.name}", settings)
    run = open_run(lab, folder, network=network)
    before = run.record["seconds"]
    same = {"precision": lab.precision, "seed": lab.seed}
    if learner is None:
        there = run.record.get("method")
        if run.record["history"] or there not in (None, method):
            raise RecordError(f"{run.folder} holds a run of {there}, not {method}; name another folder")
        run.update(method=method, dataset=store.facts, view_size=lab.view, epochs=0, batch_size=None, **same)
        run.save_encoder(plain)
    else:
        same |= {"progress": progress, "monitor": monitor, "stop_on_collapse": False, "run": run}
        pretrain(learner, store, epochs=epochs, batch_size=lab.batch_size, **same)
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
    `build` makes the method right after the seed is set (a class of the learner's own, edited, is another
    trial), and `measure` gives what to note of it when trained, {metric: value}; `settings`: `pretrain`'s."""
    torch.manual_seed(lab.seed)
    method = build()
    plain = {key: value for key, value in settings.items() if not callable(value)}
    own = [method, measure, settings.get("monitor"), epochs, batch_size, lab.seed]
    own = records.digest(records.configuration(own, {id(lab): lab}))
    facts = [own, method.recipe, store.fingerprint, len(store), plain]
    run = Run.at(lab.run_dir / "trials" / f"{name}-{digest(facts)}", device=lab.device)
    if run.record["metrics"]:
        print(f"{name}: read from {lab.run_dir.name}/trials (delete it to repeat the experiment)")
        lab.earlier += run.record["seconds"]
    else:
        same = {"progress": "none", "stop_on_collapse": False, "seed": lab.seed, "run": run}
        pretrain(method, store, epochs=epochs, batch_size=batch_size, **same, **settings)
        protocol = f"trial {name} of lesson {lab.lesson}, seed {lab.seed}"
        metrics = {}
        for metric, value in measure(method).items():
            metrics[metric] = {"value": float(value), "protocol": protocol}
        run.update(metrics=metrics)  # all of them, or none: what has some is not measured again
    lab.trials[name] = run
    return run


def baselines(lab: SimpleNamespace, train: ImageStore, test: ImageStore) -> dict[str, dict]:
    """What a method is judged beside: `judge`'s metrics of the lesson's network before training ("random"),
    of raw "pixels", of counted "colours", and of the network trained with all labels ("supervised").
    Read from the committed leaderboard where that has them for the same images, views and network; else
    measured here and kept in runs/ for all lessons."""
    if lab.profile == "smoke":  # that they can be measured is tested; on thousands of pixels it takes long
        train, test = (store.subset(torch.arange(min(200, len(store)))) for store in (train, test))
    metrics = _committed_yardsticks(lab, train)
    missing = [kind for kind in YARDSTICKS if kind not in metrics]
    if missing:
        names = ("network", "view", "stem", "supervised_epochs", "seed", "precision")
        settings = {"batch_size": 128, **{name: getattr(lab, name) for name in names}}
        settings |= {"train": train.fingerprint, "test": test.fingerprint, "images": len(train)}
        folder = _shared(lab, f"yardsticks-{train.name}", settings)
        run = Run.at(folder, device=lab.device, profile=lab.profile)
        unmeasured = [kind for kind in missing if f"knn_{kind}" not in run.record["metrics"]]
        spent = run.record.get("judging_seconds", 0.0)
        if not unmeasured:
            print(f"baselines: read from {folder.parent.name}/{folder.name}")
            lab.earlier += spent
        own = SimpleNamespace(**{**vars(lab), "batch_size": min(128, len(train))})
        for kind in unmeasured:
            begun = time.time() + own.earlier
            encoder = evaluate.load_encoder(trained(own, kind, train))
            judged = evaluate.judge(encoder, train, test, lab.view)
            spent += time.time() + own.earlier - begun  # now, or in the session that trained it
            run.record["judging_seconds"] = spent
            add_judgement(run, {}, {kind: judged})
        lab.earlier = own.earlier
        for name, metric in run.record["metrics"].items():
            name, kind = name.rsplit("_", 1)
            metrics.setdefault(kind, {})[name] = metric
    return {kind: metrics[kind] for kind in YARDSTICKS}


def _committed_yardsticks(lab: SimpleNamespace, train: ImageStore) -> dict[str, dict]:
    """The rows of data/results/leaderboard of these images and views, and of this network or of none."""
    metrics = {}
    for path in sorted((results_folder() / "leaderboard").glob("*-0.json")):
        row = Run.open(path).record
        kind, network, images = row["method"].lower(), row["network"], row["dataset"]
        facts = (images["fingerprint"], images["images"], row["view_size"])
        same = facts == (train.fingerprint, len(train), lab.view)
        ruler = network["name"] in networks.RULERS
        fits = ruler or (network["name"], network["stem"]) == (lab.network, lab.stem)
        if kind in YARDSTICKS and same and fits:
            metrics[kind] = row["metrics"]
            print(f"{kind}: read from {path.parent.name}/{path.name}")
    return metrics


def add_judgement(run: Run, metrics: dict[str, dict], beside: dict[str, dict]) -> None:
    """Write an encoder's metrics and those of its `baselines` into a run's record: knn, knn_random, …"""
    run.record["metrics"].update(metrics)
    for kind, others in beside.items():
        run.record["metrics"].update({f"{name}_{kind}": metric for name, metric in others.items()})
    run.save()
