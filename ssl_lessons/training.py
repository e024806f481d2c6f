"""The loop: any method, any image store, from the first step or from where a killed run stopped.

What it owns: order of the images, schedule, progress, checkpoints, and noticing when a run goes wrong. What a
method does with its views is not its business; device, mixed precision and processes are Accelerate's.
"""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ssl_lessons import fast, processes
from ssl_lessons.devices import TrainingError, peak_memory, pick_device, pick_precision, prepare
from ssl_lessons.images import ImageStore, to_device
from ssl_lessons.methods.base import NAMES, Method, views_of
from ssl_lessons.networks import unwrapped
from ssl_lessons.optim import build_optimizer, check_run, learning_rate, set_learning_rate
from ssl_lessons.parameters import Parameter, fit
from ssl_lessons.processes import rank_and_size
from ssl_lessons.records import Run, configuration, digest, of_memory, source_of

Monitor = Callable[[nn.Module], dict[str, float]]
COLLAPSED = 0.1  # of an even spread: embeddings that spread no wider have fallen together
WHOLE = Parameter("int", ...)
_in_training = threading.RLock()  # generators and Accelerate's state are a process', not a thread's


class _Progress:
    """What is shown while a run goes on: bars and a live curve in a notebook, one line an epoch elsewhere."""

    def __init__(self, show: str, history: list[dict], epochs: int):
        if show in ("auto", "bars"):  # lines need no notebook's packages
            from fastprogress import fastprogress
            from IPython import get_ipython
        if show == "auto":  # fastprogress goes by google.colab, which may be imported without a shell
            bars = fastprogress.IN_NOTEBOOK and get_ipython() is not None
            show = os.environ.get("SSL_LESSONS_PROGRESS") or ("bars" if bars else "lines")
        if show not in ("bars", "lines", "none"):
            raise TrainingError(f"progress {show!r} is not known; choose one of: auto, bars, lines, none")
        self.show, self.epochs, self.history = show, epochs, history
        self.outer, self.bar = range(len(history), epochs), iter  # of epochs, and of the batches of one
        if show == "bars":
            self.outer = fastprogress.master_bar(self.outer)
            self.bar = partial(fastprogress.progress_bar, parent=self.outer)
        self.live = show == "bars" and isinstance(self.outer, fastprogress.NBMasterBar)
        if self.live and history:
            self.draw()

    def steps(self, batches: list, totals: dict):
        """The batches of an epoch; in the first one the curve goes on every two seconds."""
        points, due = [], 0.0
        for step, rows in enumerate(self.bar(batches)):
            if self.live and not self.history and step and time.perf_counter() > due:
                points.append((step / len(batches), float(totals["loss"][0]) / step))
                self.draw(points)
                due = time.perf_counter() + 2
            yield rows

    def draw(self, points: list[tuple[float, float]] | None = None) -> None:
        """The mean loss so far on the left axis, kNN accuracy on the right one."""
        import matplotlib.pyplot as plt
        from IPython.display import display

        if not hasattr(self, "output"):
            figure, left = plt.subplots(figsize=(7, 3.2), dpi=144, layout="constrained")
            left.set(xlabel="epoch", xlim=(0, self.epochs))
            left.locator_params("x", integer=True)
            self.lines = left.plot([], [], "C0.-") + left.twinx().plot([], [], "C1.-")
            self.output = display(figure, display_id=True)
            plt.close(figure)  # else it is shown once more when the cell ends
        losses = points or [(row["epoch"], row["loss"]) for row in self.history]
        judged = [(row["epoch"], row["knn"]) for row in self.history if "knn" in row]
        for line, name, curve in zip(self.lines, ("loss", "kNN accuracy"), (losses, judged), strict=True):
            line.set_data([x for x, _ in curve], [y for _, y in curve])
            line.axes.set(visible=bool(curve))
            line.axes.set_ylabel(name, color=line.get_color())
            line.axes.relim()
            line.axes.autoscale_view(scalex=False)
        self.output.update(self.lines[0].figure)

    def report(self, row: dict, history: list[dict]) -> None:
        self.history = history
        knn = f"   kNN {row['knn']:.1%}" if "knn" in row else ""
        line = f"epoch {row['epoch']:>3}/{self.epochs}   loss {row['loss']:.3f}{knn}   {row['seconds']:.1f} s"
        if self.show == "lines":
            print(line, flush=True)
        if self.show == "bars":
            self.outer.main_bar.comment = line
            if row["epoch"] == self.epochs:
                self.outer.write(line)  # it stays when the bars go
        if self.live:
            self.draw()


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
    Several processes (`accelerate launch`, `torchrun`, `debug_launcher`) each take a part of every batch, and
    together compute what one would; the first one writes, judges and prints.
    method: trained in place; `method.encoder` is what is kept.
    store: uint8 images, at least one batch of them; the last partial batch of each epoch is left out.
    epochs, batch_size (of all processes together): the recipe's where None, or all images, if fewer.
    seed: of the order of the images, of the views, and of whatever the method draws.
    run: a folder (or `Run`) to keep the run in. Each epoch ends in a checkpoint, from which the same call
        goes on after an interruption; on a CPU with the same numbers.
    device, precision: see `pick_device` and `pick_precision`.
    monitor: called with the encoder every `monitor_every` epochs and after the last; what it returns joins
        the history, and "knn" is drawn. One of several processes calls it: it must not train there.
    on_epoch: called with each row of the history (for TensorBoard and the like), as `monitor`.
    progress: "auto", "bars" (notebook), "lines" (terminal) or "none".
    stop_on_collapse: raise when the embeddings fall together; False for experiments on collapse.
    TrainingError: nothing to train on, NaN, collapse, out of memory; a folder with a run of other settings or
    code; the last good checkpoint is kept. RecordError: another process writes, or the folder is damaged."""
    method = unwrapped(method)
    recipe = method.recipe
    epochs = fit("epochs", recipe.epochs if epochs is None else epochs, WHOLE)
    batch_size = min(recipe.batch_size, len(store)) if batch_size is None else batch_size  # a small folder
    batch_size, seed = fit("batch_size", batch_size, WHOLE), fit("seed", seed, WHOLE)
    monitor_every = fit("monitor_every", monitor_every, WHOLE)
    target = pick_device(device)
    precision = pick_precision(precision, target)
    if "MASTER_ADDR" not in os.environ:
        _refuse_alone()
    with ExitStack() as stack:
        if not _in_training.acquire(blocking=False):
            raise TrainingError("another thread of this process trains; wait for it, or start a process")
        stack.callback(_in_training.release)
        accelerator = stack.enter_context(processes.accelerated(target, precision))
        rank, size = rank_and_size()
        target = accelerator.device if size > 1 else target  # each process has a GPU of its own
        _check(method, store, batch_size, size)
        processes.seed_all(seed)
        method.to(target, memory_format=torch.channels_last).train()
        processes.share_weights(method)
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)  # the history's is this run's
        prepare(target)
        store = store.to(target)
        optimizer = accelerator.prepare_optimizer(build_optimizer(method), device_placement=False)
        generator = torch.Generator().manual_seed(seed)

        kind = type(method)
        settings = {"method": kind.__name__, "source": source_of(kind), "setup": _setup_of(method)}
        stack.callback(lambda: setattr(method, "_setups", (settings["setup"], _setup_of(method))))
        settings |= {"recipe": recipe, "views": views_of(method), "dataset": store.facts}
        settings |= {"view_size": method.image_size, "epochs": epochs, "batch_size": batch_size}
        settings |= {"precision": precision, "seed": seed}
        for others in processes.of_all(settings):
            differing = [name for name, value in settings.items() if others[name] != value]
            if differing:
                way_out = "give all the same (an attribute that is a process' own begins with _)"
                raise TrainingError(f"the processes differ in {', '.join(differing)}; {way_out}")
        if not isinstance(run, Run):
            run = Run.at(run if rank == 0 else None, device=target)
        stack.enter_context(run.writing())
        _end_by_signals(run, stack)
        state = _earlier_state(run, settings) if rank == 0 else None
        run.record, state = processes.from_first((run.record, state))
        kept = {"method": method, "optimizer": optimizer, "scaler": accelerator.scaler}
        if state is not None:
            _restore(state, run, kept, generator, target)
            if len(run.record["history"]) < epochs:
                run.record["metrics"] = {}  # judged at an epoch that is not the last
            if run.record["dataset"] != store.facts:  # the same images lie elsewhere by now
                run.update(dataset=store.facts)
        elif method.run_steps is not None:
            again = f"this {kind.__name__} has been trained before, and goes on from there in a new run"
            warnings.warn(f"{again}; build another one for another seed", stacklevel=2)
        stack.enter_context(processes.joint_batchnorm(method, target))
        stack.enter_context(fast.small_maps(method, target, precision))
        steps = len(store) // batch_size
        method.run_steps = epochs * steps
        check_run(method, len(store), batch_size, epochs)
        shown = _Progress(progress if rank == 0 else "none", run.record["history"], epochs)
        for epoch in shown.outer:
            started, totals = time.perf_counter(), {}
            if rank:  # what a method or a user's augmentation draws is not the same in every process
                processes.seed_all(seed + rank + size * epoch)
            order = torch.randperm(len(store), generator=generator)
            batches = [rows.chunk(size)[rank] for rows in order.split(batch_size)[:steps]]
            try:
                for step, rows in enumerate(shown.steps(batches, totals)):
                    moment = epoch + step / steps
                    set_learning_rate(optimizer, recipe, batch_size, moment, epochs)
                    views = method.augment(store.batch(rows, target), generator)  # V times (B, C, S, S)
                    labels = {"labels": to_device(store.labels[rows], target)} if method.supervised else {}
                    with accelerator.autocast():
                        loss, diagnostics = method(views, **labels)
                    optimizer.zero_grad(set_to_none=True)
                    accelerator.backward(loss)
                    processes.average_gradients(method)
                    optimizer.step()
                    method.after_step((moment + 1 / steps) / epochs)
                    _add(totals, {"loss": loss, **diagnostics})
            except (RuntimeError, MemoryError) as error:
                _explain(error, batch_size, method.image_size, target)
                raise

            means = {name: float(total) / count for name, (total, count) in totals.items()}
            row = {"epoch": epoch + 1, **processes.mean_of_all(means)}
            row["lr"] = learning_rate(recipe, batch_size, moment, epochs)
            row |= {"seconds": time.perf_counter() - started, "peak_memory": peak_memory(target)}
            _check_health(row, method, run, stop_on_collapse and batch_size > size)  # one image has no spread
            due = (epoch + 1) % monitor_every == 0 or epoch + 1 == epochs
            cause, fault = None, ""
            if rank == 0 and monitor is not None and due:
                try:
                    row |= _watched(monitor, method, target)
                except BaseException as error:  # ctrl-C too: the epoch is kept first
                    cause, fault = error, f"{type(error).__name__}: {error}"
            row, fault = processes.from_first((row, fault))
            run.refresh()  # what a monitor or `on_epoch` has judged meanwhile stays
            run.record["seconds"] += time.perf_counter() - started
            _checkpoint(row, run, kept, generator, target)
            if cause is not None and not isinstance(cause, Exception):
                raise cause
            if fault:
                failed = f"the monitor failed in epoch {epoch + 1} ({_kept(run)}): {fault}"
                raise TrainingError(failed) from cause
            if rank == 0:
                shown.report(row, run.record["history"])
                if on_epoch is not None:
                    with processes.draws_kept(target):
                        on_epoch(dict(row))
        processes.of_all(None)  # no process reads what the first has yet to write
    return run.record


def _setup_of(method: Method) -> str:
    """How a method was set up before it was trained: what training has counted in it since is no setting."""
    before, after = getattr(method, "_setups", (None, None))
    now = digest(configuration(method))[:16]
    return before if now == after else now


def _add(totals: dict[str, tuple], numbers: dict) -> None:
    """Add a step's numbers to {name: (sum, how many)}. Summed on the device, in float32 and more, and read
    once an epoch: reading a number makes a GPU wait."""
    for name, value in numbers.items():
        total, count = totals.get(name, (0.0, 0))
        value = torch.as_tensor(value).detach()
        totals[name] = total + value.to(torch.promote_types(value.dtype, torch.float32)), count + 1


def _check(method: Method, store: ImageStore, batch_size: int, size: int) -> None:
    """Raise where there is nothing to train on, or where processes cannot share it."""
    kinds = {weight.dtype for weight in method.parameters() if weight.is_floating_point()}
    if torch.get_default_dtype() != torch.float32 or kinds not in ({torch.float32}, {torch.float64}):
        fault = f"weights are {kinds}, torch's default dtype {torch.get_default_dtype()}"
        raise TrainingError(f"{fault}; call method.float() and torch.set_default_dtype(torch.float32)")
    if torch.is_autocast_enabled(next(method.parameters()).device.type):  # which keeps weights of steps ago
        raise TrainingError("torch.autocast is on; call pretrain outside of it, its precision chooses")
    count = len(store)
    if count < batch_size:
        raise TrainingError(f"{store.name} has {count} images, less than batch_size {batch_size}; lower it")
    if batch_size % size:
        raise TrainingError(f"batch_size {batch_size} is not a multiple of the {size} processes; change it")
    if size == 1:
        _refuse_alone()
    if not method.supervised:
        return
    name = type(method).__name__
    if store.labels is None:
        raise TrainingError(f"{name} needs labels; {store.name} {store.split} has none")
    low, high = store.labels.aminmax()
    classes = getattr(method, "classes", None)
    if classes is not None and not 0 <= low <= high < classes:
        raise TrainingError(f"{name} has {classes} classes; {store.name} has labels from {low} to {high}")


def _refuse_alone() -> None:
    """Raise where this process, alone, is told that it is one of several: each would train for itself."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if rank_and_size()[1] == 1 < torch.distributed.get_world_size():
            raise TrainingError("a monitor runs in the first of several processes alone: it cannot train")
        return
    count = os.environ.get("WORLD_SIZE") or "1"
    if count != "1":
        raise TrainingError(f"WORLD_SIZE is {count}, but no other process is there; start all by `torchrun`")


def _end_by_signals(run: Run, stack: ExitStack) -> None:
    """SIGTERM (Slurm, Colab, a container) and SIGHUP (a closed terminal) end the process with one line, as
    long as `stack` is open. Who handles them already, or ignores them (nohup), goes on doing so."""

    def end(number: int, frame) -> None:
        name = signal.Signals(number).name
        line = f"ssl-lessons: ended by {name}; {_kept(run)}, and the same command goes on"
        if rank_and_size()[0] == 0:
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))  # print may be in the middle of a line
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # as it would have ended: in a notebook's kernel, an exception would not

    main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has no SIGHUP
        if main and signal.getsignal(number) is signal.SIG_DFL:
            stack.callback(signal.signal, number, signal.signal(number, end))


def _kept(run: Run) -> str:
    epochs = len(run.record["history"])
    return f"checkpoint {epochs} is kept in {run.folder}" if run.folder and epochs else "none is kept"


def _watched(monitor: Monitor, method: Method, device: torch.device) -> dict[str, float]:
    """What a monitor says, as plain numbers: resume.pt is loaded with weights_only, which refuses NumPy's."""
    try:
        with processes.alone(), processes.draws_kept(device):
            said = {str(name): float(value) for name, value in monitor(method.encoder).items()}
    finally:
        method.train()
    taken = ", ".join(said.keys() & {*NAMES})
    if taken:
        raise ValueError(f"it returns {taken}, which is the history's own; use another name")
    return said


def _earlier_state(run: Run, settings: dict) -> dict | None:
    """The state to go on from, where the run's folder has one of the same settings; else the run is new."""
    run.refresh()
    if run.folder is not None and run.resume_path.exists():
        state = run.load_resume()
        records = [record for record in (run.record, state.get("record", {})) if record.get("method")]
        for record in records or [run.record]:
            _compare(record, settings, run.folder)
        for litter in run.folder.glob("*.tmp"):  # what a kill in the middle of a write left
            litter.unlink()
        return state
    if run.record["history"]:  # what was trained and judged then is another run's
        run.record["metrics"] = {}
        run.record.pop("encoder_checksum", None)
        if run.folder is not None:
            print(f"{run.folder} has no resume.pt: the run starts over, without its earlier numbers")
            run.encoder_path.unlink(missing_ok=True)
    run.update(**settings, history=[], seconds=0.0)
    return None


def _compare(record: dict, settings: dict, folder: Path) -> None:
    """`TrainingError` unless a record is of these settings; what an older version did not note is added."""
    fresh = Run.in_memory(**settings).record
    recipe, old_recipe = settings["recipe"], record.get("recipe") or {}
    for name, value in fresh["recipe"].items():  # a field that has come since is at its default
        if name not in old_recipe and getattr(recipe, name) == getattr(type(recipe), name, None):
            old_recipe[name] = value
    record.setdefault("views", fresh["views"])
    if record.get("versions") != fresh["versions"]:  # another version's layers note their settings otherwise
        fresh["setup"] = record.get("setup")  # the record keeps its own: it names its versions
    pythons = [each.get("versions", {}).get("python", "").rpartition(".")[0] for each in (record, fresh)]
    if pythons[0] != pythons[1]:  # and another Python writes a tree of code otherwise
        fresh["source"] = record.get("source")
    for name in ("setup", "source"):  # None: nothing to compare
        record[name] = record.get(name) or fresh[name]
        fresh[name] = fresh[name] or record[name]
    for name in settings:
        old, new = record.get(name), fresh[name]
        if name == "dataset":  # the same images, wherever they lie
            keys = ("fingerprint", "images", "size")
            old, new = ({key: side.get(key) for key in keys} for side in (old or {}, new))
        if isinstance(old, dict) and isinstance(new, dict):  # of a recipe or dataset, only what differs
            old, new = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((old, new), (new, old)))
        if old == new:
            continue
        if name in ("source", "setup"):
            code, setup = "code", "setup (network, layer, attributes, augmentations)"
            changed = f"the {code if name == 'source' else setup} of {fresh['method']}"
            way_out = "name another folder (what only counts is an attribute that begins with _)"
            raise TrainingError(f"{changed} is not the one that made {folder}; {way_out}")
        differs = f"{folder} holds a run with another {name}: {old!r}, not {new!r}"
        raise TrainingError(f"{differs}; name another folder, or repeat its settings")


def _checkpoint(row: dict, run: Run, kept: dict, generator: torch.Generator, device: torch.device) -> None:
    """Add an epoch's row to the record, and write all that is needed to go on after it."""
    history, write = run.record["history"], run.folder is not None and rank_and_size()[0] == 0
    if write:
        state = {name: part.state_dict() if part is not None else {} for name, part in kept.items()}
        state["generators"] = {"views": generator.get_state(), **processes.draws(device)}
        state |= {"history": [*history, row], "seconds": run.record["seconds"]}
        run.save_resume(state)  # first: from it the other two can be written again
    history.append(row)
    if write:
        encoder = kept["method"].encoder
        run.save_encoder(getattr(encoder, "network", encoder))


def _restore(state: dict, run: Run, kept: dict, generator: torch.Generator, device: torch.device) -> None:
    """Put everything back as `_checkpoint` found it, and mend what else is in the folder."""
    try:
        kept["method"].load_state_dict(state["method"])
        kept["optimizer"].load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(f"{run.folder} holds another network; name another folder") from error
    for group in kept["optimizer"].param_groups:
        group.setdefault("scale", 1.0)  # not in an older version's
    if kept["scaler"] is not None:
        kept["scaler"].load_state_dict(state["scaler"])
    generator.set_state(state["generators"]["views"])
    processes.set_draws(state["generators"], device)
    if run.restore(state):
        run.save()
    if run.folder is not None and rank_and_size()[0] == 0:
        run.encoder()


def _check_health(row: dict, method: Method, run: Run, stop_on_collapse: bool) -> None:
    """Raise on NaN, and on embeddings that have fallen together, before anything is saved."""
    when = f"in epoch {row['epoch']} ({_kept(run)})"
    way_out = "try a lower lr, a longer warm-up, or precision fp32"
    if not math.isfinite(row["loss"]):
        raise TrainingError(f"the loss is {row['loss']} {when}; {way_out}")
    if not all(p.isfinite().all() for p in method.parameters()):  # the last step's, behind a finite loss
        raise TrainingError(f"a weight is NaN or infinite {when}; {way_out}")
    if all(weight.grad is None for weight in method.encoder.parameters()):
        raise TrainingError(f"no gradient reaches the encoder {when}; take detach and no_grad out of its way")
    spread = row.get("embedding_std", 1.0)
    if stop_on_collapse and not spread > COLLAPSED:
        way_out = "see lesson 06, or pass stop_on_collapse=False to watch it"
        raise TrainingError(f"the embeddings collapse {when}: spread {spread:.4f} of an even one; {way_out}")


def _explain(error: Exception, batch_size: int, image_size: int, device: torch.device) -> None:
    """Raise a `TrainingError` with the batch to try if the error is one of memory; else return."""
    if not of_memory(error):
        return
    memory = "the memory of this machine"
    if device.type == "cuda":
        memory = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB of {device}"
    fault = f"a batch of {batch_size} at {image_size} pixels does not fit in {memory}"
    smaller = f"batch_size={max(2, batch_size // 2)}, in a new folder if this one has finished epochs"
    raise TrainingError(f"{fault}; try {smaller}") from error
