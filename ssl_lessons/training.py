"""The loop: any method, any image store, from the first step or from where a killed run stopped.

What it owns: order of the images, schedule, mixed precision, progress, checkpoints, and noticing when a run
goes wrong. What a method does with two views is not its business.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ssl_lessons.devices import kernels, part, passes, pick_device, pick_precision, prepare
from ssl_lessons.feed import AHEAD, batches, resident
from ssl_lessons.images import ImageStore, sent
from ssl_lessons.meters import joules, peak_memory
from ssl_lessons.methods.base import Method
from ssl_lessons.optimisers import TrainingError, learning_rate, optimiser, peak_rate
from ssl_lessons.records import Run

Monitor = Callable[[nn.Module], dict[str, float]]
COLLAPSED = 0.1  # of the largest spread that the run has shown
COLLAPSED_ALWAYS = 0.01  # of an even spread, whatever the run has shown


class _Progress:
    """What is shown while a run goes on: bars and live curves in a notebook, one line an epoch elsewhere."""

    def __init__(self, show: str, start: int, epochs: int, steps: int):
        from fastprogress import fastprogress  # here, so that the module imports without it

        if show == "auto":
            show = os.environ.get("SSL_LESSONS_PROGRESS")  # what executes notebooks shows lines
            show = show or ("bars" if fastprogress.IN_NOTEBOOK else "lines")
        if show not in ("bars", "lines", "none"):
            raise TrainingError(f"progress {show!r} is not known; choose one of: auto, bars, lines, none")
        self.show, self.epochs, self.steps = show, epochs, steps
        self.outer = range(start, epochs)
        if show == "bars":
            self._bar = fastprogress.progress_bar
            self.outer = fastprogress.master_bar(self.outer)
            self.outer.names = ["loss / first loss"]

    def batches(self):
        return self._bar(range(self.steps), parent=self.outer) if self.show == "bars" else range(self.steps)

    def report(self, row: dict, history: list[dict]) -> None:
        line = f"epoch {row['epoch']:>3}/{self.epochs}   loss {row['loss']:.3f}"
        line += f"   kNN {row['knn']:.1%}" if "knn" in row else ""
        line += f"   {row['seconds']:.1f} s"
        if self.show == "lines":
            print(line, flush=True)
        elif self.show == "bars":
            self.outer.main_bar.comment = line
            first = abs(history[0]["loss"]) or 1.0  # a loss may be negative, and a broken one 0
            loss = [h["loss"] / first for h in history]  # MoCo's rises before it falls, as its queue fills
            judged = [h for h in history if "knn" in h]
            curves = [[[h["epoch"] for h in history], loss]]
            if judged:
                self.outer.names = ["loss / first loss", "kNN accuracy"]
                curves.append([[h[k] for h in judged] for k in ("epoch", "knn")])
            self.outer.update_graph(curves, [0, self.epochs], [min(0, *loss), 1.05 * max(1, *loss)])


def pretrain(
    method: Method,
    store: ImageStore,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    run: Run | str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    monitor: Monitor | None = None,
    monitor_every: int = 1,
    progress: str = "auto",
    stop_on_collapse: bool = True,
    budget: int | None = None,
) -> dict:
    """Train a method on an image store; returns the run's record, `record["history"]` with a row an epoch.

    Args:
        method: trained in place; `method.encoder` is what is kept.
        store: uint8 images, at least one batch of them; the last partial batch of each epoch is left out.
        epochs, batch_size: the recipe's where None (of a store that is smaller, all images at once).
        seed: of the order of the images, of the views, and of whatever the method draws.
        run: a folder (or `Run`) to keep the run in. With it, each epoch ends in a checkpoint, and calling
            again after an interruption goes on from the last one; on a CPU with the same numbers.
        device, precision: see `pick_device` and `pick_precision`.
        monitor: called with the encoder every `monitor_every` epochs and after the last; what it returns
            joins the history, and "knn" is drawn.
        progress: "auto", "bars" (notebook), "lines" (terminal) or "none".
        budget: bytes that the images may take on the device (None: half of a GPU's free memory, half of a
            CPU's RAM). More of them stay in their file, from which batches are read ahead.
        stop_on_collapse: raise when the embeddings fall together; False for experiments on collapse.
    Raises:
        TrainingError: nothing to train on, NaN, collapse, out of memory. The last good checkpoint is kept.
    """
    recipe = method.recipe
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = min(recipe.batch_size, len(store)) if batch_size is None else batch_size  # a small folder
    if epochs < 1 or batch_size < 1:
        raise TrainingError(f"epochs {epochs} and batch_size {batch_size} must both be at least 1")
    if len(store) < batch_size:
        raise TrainingError(
            f"{store.name} has {len(store)} images, less than batch_size {batch_size}; lower it"
        )
    if method.supervised and store.labels is None:
        raise TrainingError(f"{type(method).__name__} needs labels; {store.name} {store.split} has none")
    target = pick_device(device)
    precision = pick_precision(precision, target)
    torch.manual_seed(seed)
    method.to(target, memory_format=torch.channels_last).train()
    if target.type == "cuda":  # after the first tensor there: resetting does not initialise CUDA by itself
        torch.cuda.reset_peak_memory_stats(target)  # the history's is this run's
    prepare(target)
    store = store.to(target, budget)
    ahead = 0 if resident(store, target, budget) else AHEAD
    optimizer = optimiser(method)
    generator = torch.Generator().manual_seed(seed)
    scaler = torch.amp.GradScaler(target.type, enabled=precision == "fp16")
    dataset = {name: getattr(store, name) for name in ("name", "split", "size", "fingerprint", "origin")}
    settings = {
        "method": type(method).__name__,
        "recipe": recipe,
        "dataset": {**dataset, "images": len(store)},
        "view_size": method.image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "precision": precision,
        "seed": seed,
    }
    run, state = _open(run, settings, target)
    if state is not None:
        try:
            method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise TrainingError(f"{run.folder} holds another network; name another folder") from error
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group.setdefault("scale", 1.0)  # not in an older version's
        scaler.load_state_dict(state["scaler"])
        generator.set_state(state["generators"]["views"])
        torch.set_rng_state(state["generators"]["cpu"])
        if target.type == "cuda" and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"], target)
        behind = len(run.record["history"]) < len(state["history"])
        run.record.update(history=state["history"], seconds=state["seconds"])
        if behind:  # the kill fell between resume.pt and the two other files
            _save(run, method)
    history: list[dict] = run.record["history"]

    steps = len(store) // batch_size
    method.run_steps = epochs * steps
    shown = _Progress(progress, len(history), epochs, steps)
    for epoch in shown.outer:
        started, view_seconds, totals = time.perf_counter(), 0.0, {}
        energy = joules(target)
        order = torch.randperm(len(store), generator=generator)
        feed = batches(store, order, batch_size, target, ahead)
        for step in shown.batches():
            moment = epoch + step / steps
            rate = learning_rate(recipe, batch_size, moment, epochs)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * (peak_rate(recipe, batch_size) if group["constant"] else rate)
            clock = time.perf_counter()
            with part("read", target):
                rows, images = next(feed)  # (B,), (B, 3, H, W) uint8
            try:
                with part("views", target):
                    seen = method.augment(images, generator)
                view_seconds += time.perf_counter() - clock
                with part("forward", target), passes(target, precision, method):
                    extra = {"labels": sent(store.labels[rows], target)} if method.supervised else {}
                    loss, diagnostics = method(seen, **extra)
                with part("backward", target), kernels(target, method):  # a checkpoint goes forward again
                    optimizer.zero_grad(set_to_none=True)
                    scaler.scale(loss).backward()
                with part("optimizer", target):
                    scaler.step(optimizer)
                    scaler.update()
            except (RuntimeError, MemoryError) as error:
                _explain(error, batch_size, method.image_size, target)
                raise
            with part("after_step", target):
                method.after_step((moment + 1 / steps) / epochs)
            # Summed on the device and read once an epoch: reading a number makes a GPU wait.
            for name, value in {"loss": loss.detach(), **diagnostics}.items():
                totals[name] = totals.get(name, 0) + value
        row = {"epoch": epoch + 1, **{name: float(total) / steps for name, total in totals.items()}}
        row["lr"] = rate
        row["seconds"] = time.perf_counter() - started
        if target.type == "cpu":  # a GPU works on while the host goes ahead: its share cannot be read off
            row["view_share"] = view_seconds / row["seconds"]
        row["peak_memory"] = peak_memory(target)
        if energy is not None and (used := joules(target) - energy) >= 0:
            row["joules"] = used
        _check_health(row, history, method, run, stop_on_collapse)
        if monitor is not None and ((epoch + 1) % monitor_every == 0 or epoch + 1 == epochs):
            # plain numbers: resume.pt is loaded with weights_only, which refuses NumPy's
            row.update({name: float(value) for name, value in monitor(method.encoder).items()})
            method.train()
        history.append(row)
        run.record["seconds"] += time.perf_counter() - started
        if run.folder is not None:
            _checkpoint(run, method, optimizer, scaler, generator, target)
        shown.report(row, history)
    return run.record


def _open(run: Run | str | Path | None, settings: dict, device: torch.device) -> tuple[Run, dict | None]:
    """The run to write into, and the state to go on from where it has one."""
    if run is None:
        run = Run.in_memory(device=device)
    elif not isinstance(run, Run):
        folder = Path(run)
        run = Run.open(folder) if (folder / "record.json").exists() else Run.create(folder, device=device)
    if run.folder is None or not run.resume_path.exists():
        run.update(**settings, history=[], seconds=0.0)  # a history without its resume.pt is another run's
        return run, None
    fresh = Run.in_memory(device=device, **settings).record
    recipe, known = settings["recipe"], run.record.get("recipe") or {}
    for name, value in fresh["recipe"].items():  # an older version's lacks the fields that have come since
        if name not in known and getattr(recipe, name) == getattr(type(recipe), name, None):
            known[name] = value
    for name in settings:
        old, new = run.record.get(name), fresh[name]
        if isinstance(old, dict) and isinstance(new, dict):  # of a recipe or dataset, only what differs
            old, new = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((old, new), (new, old)))
        if old != new:
            raise TrainingError(
                f"{run.folder} holds a run with another {name}: {old!r}, not {new!r}; "
                "repeat its settings to go on with it, or name another folder"
            )
    for litter in run.folder.glob("*.tmp"):  # what a kill in the middle of a write left
        litter.unlink()
    return run, run.load_resume()


def _checkpoint(run: Run, method, optimizer, scaler, generator, device) -> None:
    state = {
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "generators": {"views": generator.get_state(), "cpu": torch.get_rng_state()},
        "history": run.record["history"],
        "seconds": run.record["seconds"],
    }
    if device.type == "cuda":
        state["generators"]["cuda"] = torch.cuda.get_rng_state(device)
    run.save_resume(state)  # first: from it the other two can be written again
    _save(run, method)


def _save(run: Run, method: Method) -> None:
    run.save_encoder(getattr(method.encoder, "network", method.encoder))
    run.save()


def _check_health(row: dict, history: list[dict], method: Method, run: Run, stop_on_collapse: bool) -> None:
    """Raise on NaN, and on embeddings that have fallen together, before anything is saved."""
    kept = f"checkpoint {len(history)} is kept in {run.folder}" if run.folder and history else "none is kept"
    broken = "" if math.isfinite(row["loss"]) else f"the loss is {row['loss']}"
    if not broken and not all(p.isfinite().all() for p in method.parameters()):
        broken = "a weight is NaN or infinite"  # only the last step can leave that behind a finite loss
    if broken:
        advice = "try a lower lr, a longer warm-up, or precision fp32"
        raise TrainingError(f"{broken} in epoch {row['epoch']} ({kept}); {advice}")
    spread = row.get("embedding_std")
    if spread is None or not history or not stop_on_collapse:
        return
    widest = max(past["embedding_std"] for past in history)
    if spread < max(COLLAPSED * widest, COLLAPSED_ALWAYS):
        raise TrainingError(
            f"the embeddings collapse in epoch {row['epoch']}: their spread is {spread:.4f} of an even one, "
            f"after up to {widest:.4f} ({kept}); see lesson 06, or pass stop_on_collapse=False to watch it"
        )


def _explain(error: Exception, batch_size: int, image_size: int, device: torch.device) -> None:
    """Raise a `TrainingError` with the batch to try if the error is one of memory; else return."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
    known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    if not known and not any(word in str(error) for word in words):
        return
    memory = "the memory of this machine"
    if device.type == "cuda":
        memory = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB of {device}"
    raise TrainingError(
        f"a batch of {batch_size} at {image_size} pixels does not fit in {memory}; "
        f"try batch_size={max(2, batch_size // 2)}, in a new folder if this one has finished epochs"
    ) from error
