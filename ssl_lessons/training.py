"""The loop: any method, any image store, from the first step or from where a killed run stopped.

What it owns: order of the images, schedule, progress, checkpoints, and noticing when a run goes wrong. What a
method does with its views is not its business; device, mixed precision and processes are Accelerate's.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from ssl_lessons.devices import TrainingError, peak_memory, pick_device, pick_precision, prepare
from ssl_lessons.images import ImageStore, to_device
from ssl_lessons.methods.base import Method, views_of
from ssl_lessons.optim import build_optimizer, learning_rate, set_learning_rate
from ssl_lessons.processes import (
    accelerated,
    average_gradients,
    from_first,
    joint_batchnorm,
    mean_of_all,
    rank_and_size,
    share_weights,
)
from ssl_lessons.records import Run, source_of

Monitor = Callable[[nn.Module], dict[str, float]]
COLLAPSED = 0.1  # of the largest spread that the run has shown
COLLAPSED_ALWAYS = 0.01  # of an even spread, whatever the run has shown


def _in_shell() -> bool:
    """Whether IPython runs: google.colab, by which fastprogress goes, may be imported outside a notebook."""
    from IPython import get_ipython

    return get_ipython() is not None


class _Progress:
    """What is shown while a run goes on: bars and live curves in a notebook, one line an epoch elsewhere."""

    def __init__(self, show: str, start: int, epochs: int):
        from fastprogress import fastprogress  # here, so that the module imports without it

        if show == "auto":
            show = os.environ.get("SSL_LESSONS_PROGRESS")  # what executes notebooks shows lines
            show = show or ("bars" if fastprogress.IN_NOTEBOOK and _in_shell() else "lines")
        if show not in ("bars", "lines", "none"):
            raise TrainingError(f"progress {show!r} is not known; choose one of: auto, bars, lines, none")
        self.show, self.epochs, self.outer = show, epochs, range(start, epochs)
        if show == "bars":
            self.bar = fastprogress.progress_bar
            self.outer = fastprogress.master_bar(self.outer)
            self.outer.names = ["loss / first loss"]

    def steps(self, batches: list):
        return self.bar(batches, parent=self.outer) if self.show == "bars" else batches

    def report(self, row: dict, history: list[dict]) -> None:
        knn = f"   kNN {row['knn']:.1%}" if "knn" in row else ""
        line = f"epoch {row['epoch']:>3}/{self.epochs}   loss {row['loss']:.3f}{knn}   {row['seconds']:.1f} s"
        if self.show == "lines":
            print(line, flush=True)
        elif self.show == "bars":
            self.outer.main_bar.comment = line
            first = abs(history[0]["loss"]) or 1.0  # a loss may be negative, and a broken one 0
            loss = [past["loss"] / first for past in history]  # MoCo's rises at first, as its queue fills
            curves = [[[past["epoch"] for past in history], loss]]
            judged = [past for past in history if "knn" in past]
            if judged:
                self.outer.names = ["loss / first loss", "kNN accuracy"]
                curves.append([[past["epoch"] for past in judged], [past["knn"] for past in judged]])
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
    on_epoch: Callable[[dict], object] | None = None,
    progress: str = "auto",
    stop_on_collapse: bool = True,
) -> dict:
    """Train a method on an image store; returns the run's record, `record["history"]` with a row an epoch.

    Started as several processes (`accelerate launch`, `torchrun`, `debug_launcher`), each takes a part of
    every batch, and together they compute what one would; the first one writes, judges and prints.

    Args:
        method: trained in place; `method.encoder` is what is kept.
        store: uint8 images, at least one batch of them; the last partial batch of each epoch is left out.
        epochs, batch_size: the recipe's where None (of a store that is smaller, all images at once). The
            batch is that of all processes together.
        seed: of the order of the images, of the views, and of whatever the method draws.
        run: a folder (or `Run`) to keep the run in. With it, each epoch ends in a checkpoint, and calling
            again after an interruption goes on from the last one; on a CPU with the same numbers.
        device, precision: see `pick_device` and `pick_precision`.
        monitor: called with the encoder every `monitor_every` epochs and after the last; what it returns
            joins the history, and "knn" is drawn. It runs in the first process alone, so it must not train.
        on_epoch: called with each row of the history (for TensorBoard and the like), as `monitor`.
        progress: "auto", "bars" (notebook), "lines" (terminal) or "none".
        stop_on_collapse: raise when the embeddings fall together; False for experiments on collapse.
    Raises:
        TrainingError: nothing to train on, NaN, collapse, out of memory; a folder that holds a run of other
            settings or of other code of the method. The last good checkpoint is kept.
        RecordError: another process writes into the folder, or what is in it is damaged.
    """
    recipe = method.recipe
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = min(recipe.batch_size, len(store)) if batch_size is None else batch_size  # a small folder
    target = pick_device(device)
    precision = pick_precision(precision, target)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(target, precision))
        rank, size = rank_and_size()
        target = accelerator.device if size > 1 else target  # each process has a GPU of its own
        _check(method, store, epochs, batch_size, size)
        torch.manual_seed(seed)
        method.to(target, memory_format=torch.channels_last).train()
        share_weights(method)
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)  # the history's is this run's
        prepare(target)
        store = store.to(target)
        optimizer = accelerator.prepare_optimizer(build_optimizer(method), device_placement=False)
        generator = torch.Generator().manual_seed(seed)

        settings = {
            "method": type(method).__name__,
            "source": source_of(type(method)),
            "recipe": recipe,
            "views": views_of(method),
            "dataset": store.facts,
            "view_size": method.image_size,
            "epochs": epochs,
            "batch_size": batch_size,
            "precision": precision,
            "seed": seed,
        }
        if not isinstance(run, Run):
            run = Run.at(run if rank == 0 else None, device=target)
        stack.enter_context(run.writing())
        state = _earlier_state(run, settings) if rank == 0 else None
        run.record, state = from_first((run.record, state))
        kept = {"method": method, "optimizer": optimizer, "scaler": accelerator.scaler}
        if state is not None:
            _restore(state, run, kept, generator, target)
        history: list[dict] = run.record["history"]
        stack.enter_context(joint_batchnorm(method, target))
        steps = len(store) // batch_size
        method.run_steps = epochs * steps
        shown = _Progress(progress if rank == 0 else "none", len(history), epochs)
        for epoch in shown.outer:
            started, totals = time.perf_counter(), {}
            if rank:  # what a method or a user's augmentation draws is not the same in every process
                torch.manual_seed(seed + rank + size * epoch)
            order = torch.randperm(len(store), generator=generator)
            batches = [rows.chunk(size)[rank] for rows in order.split(batch_size)[:steps]]
            try:
                for step, rows in enumerate(shown.steps(batches)):
                    moment = epoch + step / steps
                    set_learning_rate(optimizer, recipe, batch_size, moment, epochs)
                    views = method.augment(store.batch(rows, target), generator)  # V times (B, C, S, S)
                    labels = {}
                    if method.supervised:
                        labels["labels"] = to_device(store.labels[rows], target)
                    with accelerator.autocast():
                        loss, diagnostics = method(views, **labels)
                    optimizer.zero_grad(set_to_none=True)
                    accelerator.backward(loss)
                    average_gradients(method)
                    optimizer.step()
                    method.after_step((moment + 1 / steps) / epochs)
                    # Summed on the device and read once an epoch: reading a number makes a GPU wait.
                    for name, value in {"loss": loss.detach(), **diagnostics}.items():
                        totals[name] = totals.get(name, 0) + value
            except (RuntimeError, MemoryError) as error:
                _explain(error, batch_size, method.image_size, target)
                raise

            means = mean_of_all({name: float(total) / steps for name, total in totals.items()})
            row = {"epoch": epoch + 1, **means, "lr": learning_rate(recipe, batch_size, moment, epochs)}
            row |= {"seconds": time.perf_counter() - started, "peak_memory": peak_memory(target)}
            _check_health(row, history, method, run, stop_on_collapse)
            due = (epoch + 1) % monitor_every == 0 or epoch + 1 == epochs
            if rank == 0 and monitor is not None and due:
                # plain numbers: resume.pt is loaded with weights_only, which refuses NumPy's
                row |= {name: float(value) for name, value in monitor(method.encoder).items()}
                method.train()
            row = from_first(row)
            history.append(row)
            run.record["seconds"] += time.perf_counter() - started
            if rank == 0:
                _checkpoint(run, kept, generator, target)
                shown.report(row, history)
                if on_epoch is not None:
                    on_epoch(row)
    return run.record


def _check(method: Method, store: ImageStore, epochs: int, batch_size: int, size: int) -> None:
    if epochs < 1 or batch_size < 1:
        raise TrainingError(f"epochs {epochs} and batch_size {batch_size} must both be at least 1")
    count = len(store)
    if count < batch_size:
        raise TrainingError(f"{store.name} has {count} images, less than batch_size {batch_size}; lower it")
    if batch_size % size:
        raise TrainingError(f"batch_size {batch_size} is not a multiple of the {size} processes; change it")
    if method.supervised and store.labels is None:
        raise TrainingError(f"{type(method).__name__} needs labels; {store.name} {store.split} has none")


def _earlier_state(run: Run, settings: dict) -> dict | None:
    """The state to go on from, where the run's folder has one of the same settings; else the run is new."""
    if run.folder is None or not run.resume_path.exists():
        if run.record["history"]:  # without its resume.pt: what was judged then is another run's
            run.record["metrics"] = {}
        run.update(**settings, history=[], seconds=0.0)
        return None
    fresh = Run.in_memory(**settings).record
    recipe, known = settings["recipe"], run.record.get("recipe") or {}
    for name, value in fresh["recipe"].items():  # an older version's lacks the fields that have come since
        if name not in known and getattr(recipe, name) == getattr(type(recipe), name, None):
            known[name] = value
    if not run.record.get("source") or not fresh["source"]:  # an older version's, or nothing to compare
        run.record["source"] = fresh["source"] = run.record.get("source") or fresh["source"]
    run.record.setdefault("views", fresh["views"])  # not in an older version's
    for name in settings:
        old, new = run.record.get(name), fresh[name]
        if name == "dataset":  # the same images, wherever they lie
            keys = ("fingerprint", "images", "size")
            old, new = ({key: side.get(key) for key in keys} for side in (old or {}, new))
        if name == "source" and old != new:
            raise TrainingError(
                f"the code of {fresh['method']} is not the one that {run.folder} was trained with; its "
                "history is kept as it is: name another folder for the new code, or delete this one"
            )
        if isinstance(old, dict) and isinstance(new, dict):  # of a recipe or dataset, only what differs
            old, new = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((old, new), (new, old)))
        if old != new:
            raise TrainingError(
                f"{run.folder} holds a run with another {name}: {old!r}, not {new!r}; "
                "repeat its settings to go on with it, or name another folder"
            )
    for litter in run.folder.glob("*.tmp"):  # what a kill in the middle of a write left
        litter.unlink()
    return run.load_resume()


def _checkpoint(run: Run, kept: dict, generator: torch.Generator, device: torch.device) -> None:
    if run.folder is None:
        return
    state = {name: part.state_dict() if part is not None else {} for name, part in kept.items()}
    state["generators"] = {"views": generator.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["generators"]["cuda"] = torch.cuda.get_rng_state(device)
    state |= {"history": run.record["history"], "seconds": run.record["seconds"]}
    run.save_resume(state)  # first: from it the other two can be written again
    _save(run, kept["method"])


def _restore(state: dict, run: Run, kept: dict, generator: torch.Generator, device: torch.device) -> None:
    """Put everything back as `_checkpoint` found it."""
    try:
        kept["method"].load_state_dict(state["method"])
    except RuntimeError as error:
        raise TrainingError(f"{run.folder} holds another network; name another folder") from error
    kept["optimizer"].load_state_dict(state["optimizer"])
    for group in kept["optimizer"].param_groups:
        group.setdefault("scale", 1.0)  # not in an older version's
    if kept["scaler"] is not None:
        kept["scaler"].load_state_dict(state["scaler"])
    generator.set_state(state["generators"]["views"])
    torch.set_rng_state(state["generators"]["cpu"])
    if device.type == "cuda" and "cuda" in state["generators"]:
        torch.cuda.set_rng_state(state["generators"]["cuda"], device)
    behind = len(run.record["history"]) < len(state["history"])
    run.record |= {"history": state["history"], "seconds": state["seconds"]}
    if behind and rank_and_size()[0] == 0:  # the kill fell between resume.pt and the two other files
        _save(run, kept["method"])


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
