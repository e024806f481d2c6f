"""The loop: any method, any image store, from the first step or from where a killed run stopped.

What it owns: order of the images, schedule, mixed precision, progress, checkpoints, and noticing when a run
goes wrong. What a method does with two views is not its business.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method, Recipe
from ssl_lessons.records import Run
from ssl_lessons.views import views

Monitor = Callable[[nn.Module], dict[str, float]]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLLAPSED = 0.1  # of the largest spread that the run has shown
COLLAPSED_ALWAYS = 0.01  # of an even spread, whatever the run has shown


class TrainingError(Exception):
    """A run that cannot start or go on; the message says why, what is kept, and what to try."""


def pick_device(name: str = "auto") -> torch.device:
    """The device meant by a name; "auto" is the GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device {name!r} is not known; choose auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device {name!r} asks for a GPU and PyTorch sees none; choose auto or cpu")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The arithmetic for the passes: "fp32", "bf16" or "fp16".

    "auto" takes what the device computes natively: bf16 on GPUs from compute capability 8 and on CPUs with
    AVX512-BF16; fp16 with loss scaling on older GPUs (a T4 only emulates bf16); else fp32.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"
    if name not in PRECISIONS:
        raise TrainingError(f"precision {name!r} is not known; choose one of: auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise TrainingError("precision 'fp16' needs a GPU; choose fp32 or bf16 on a CPU")
    return name


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")  # elsewhere than on Linux: fp32, which is never wrong
    return flags.exists() and "avx512_bf16" in flags.read_text()


def autocast(device: torch.device, precision: str):
    """The context in which forward passes run at that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def learning_rate(recipe: Recipe, batch_size: int, epoch: float, epochs: int) -> float:
    """The rate at a moment of the run, `epoch` in [0, epochs] and fractional within an epoch.

    Linear warm-up over `recipe.warmup` epochs, then cosine (SGDR eq. 5 without restarts), steps or nothing.
    """
    peak = recipe.lr if recipe.lr_batch is None else recipe.lr * batch_size / recipe.lr_batch
    warmup = min(recipe.warmup, epochs / 2)  # a short run must not be all warm-up
    if epoch < warmup:
        return peak * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    if recipe.schedule == "cosine":
        return peak * (recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * progress)) / 2)
    if recipe.schedule == "step":
        return peak * (0.1 if epoch >= 0.6 * epochs else 1) * (0.1 if epoch >= 0.8 * epochs else 1)
    if recipe.schedule == "constant":
        return peak
    raise TrainingError(f"schedule {recipe.schedule!r} is not known; choose one of: cosine, step, constant")


def optimiser(method: Method) -> torch.optim.Optimizer:
    """The recipe's optimiser over every parameter of the method that takes gradients."""
    recipe = method.recipe
    parameters = [p for p in method.parameters() if p.requires_grad]
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.sgd_momentum, **settings)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, **settings)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    raise TrainingError(f"optimizer {recipe.optimizer!r} is not known; choose one of: sgd, adam, adamw")


class _Progress:
    """What is shown while a run goes on: bars and live curves in a notebook, one line an epoch elsewhere."""

    def __init__(self, show: str, start: int, epochs: int, steps: int):
        from fastprogress import fastprogress  # here, so that the module imports without it

        if show == "auto":
            show = "bars" if fastprogress.IN_NOTEBOOK else "lines"
        if show not in ("bars", "lines", "none"):
            raise TrainingError(f"progress {show!r} is not known; choose one of: auto, bars, lines, none")
        self.show, self.epochs, self.steps = show, epochs, steps
        self.outer = range(start, epochs)
        if show == "bars":
            self._bar = fastprogress.progress_bar
            self.outer = fastprogress.master_bar(self.outer)
            self.outer.names = ["loss / first loss", "kNN accuracy"]

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
            knn = [(h["epoch"], h["knn"]) for h in history if "knn" in h]
            curves = [[[h["epoch"] for h in history], [h["loss"] / history[0]["loss"] for h in history]]]
            curves.append([list(axis) for axis in zip(*knn, strict=True)] if knn else [[], []])
            self.outer.update_graph(curves, [0, self.epochs], [0, 1.05])


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
) -> dict:
    """Train a method on an image store; returns the run's record, `record["history"]` with a row an epoch.

    Args:
        method: trained in place; `method.encoder` is what is kept.
        store: uint8 images, at least one batch of them; the last partial batch of each epoch is left out.
        epochs, batch_size: the recipe's where None.
        seed: of the order of the images, of the views, and of whatever the method draws.
        run: a folder (or `Run`) to keep the run in. With it, each epoch ends in a checkpoint, and calling
            again after an interruption goes on from the last one; on a CPU with the very same numbers.
        device, precision: see `pick_device` and `pick_precision`.
        monitor: called with the encoder every `monitor_every` epochs and after the last; what it returns joins
            the history, and "knn" is drawn.
        progress: "auto", "bars" (notebook), "lines" (terminal) or "none".
        stop_on_collapse: raise when the embeddings fall together; False for experiments on collapse.
    Raises:
        TrainingError: nothing to train on, NaN, collapse, out of memory. The last good checkpoint is kept.
    """
    recipe = method.recipe
    epochs, batch_size = epochs or recipe.epochs, batch_size or recipe.batch_size
    if len(store) < batch_size:
        raise TrainingError(f"{store.name} has {len(store)} images, less than a batch of {batch_size}; lower batch_size")
    target = pick_device(device)
    precision = pick_precision(precision, target)
    torch.manual_seed(seed)
    method.to(target, memory_format=torch.channels_last).train()
    store = store.to(target)
    optimizer = optimiser(method)
    generator = torch.Generator().manual_seed(seed)
    scaler = torch.amp.GradScaler(target.type, enabled=precision == "fp16")
    settings = {
        "method": type(method).__name__,
        "recipe": recipe,
        "dataset": {
            "name": store.name,
            "split": store.split,
            "images": len(store),
            "size": store.size,
            "fingerprint": store.fingerprint,
            "origin": store.origin,
        },
        "view_size": method.image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "precision": precision,
        "seed": seed,
    }
    run, state = _open(run, settings, target)
    if state is not None:  # it may be an epoch ahead of the record, if the kill fell between the two files
        run.record.update(history=state["history"], seconds=state["seconds"])
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        _restore_generators(state["generators"], generator, target)
    history: list[dict] = run.record["history"]

    steps = len(store) // batch_size
    shown = _Progress(progress, len(history), epochs, steps)
    context = autocast(target, precision)
    for epoch in shown.outer:
        started, view_seconds, totals = time.perf_counter(), 0.0, {}
        order = torch.randperm(len(store), generator=generator)
        for step in shown.batches():
            moment = epoch + step / steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, batch_size, moment, epochs)
            clock = time.perf_counter()
            rows = order[step * batch_size : (step + 1) * batch_size]
            images = store.batch(rows, target)  # (B, 3, H, W) uint8
            seen = [views(images, policy, generator, method.image_size) for policy in method.policies]
            view_seconds += time.perf_counter() - clock
            try:
                with context:
                    extra = {"labels": store.labels[rows].to(target)} if method.supervised else {}
                    loss, diagnostics = method(seen, **extra)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            except RuntimeError as error:
                raise _explained(error, batch_size, method.image_size, target) from error
            method.after_step((moment + 1 / steps) / epochs)
            # Summed on the device and read once an epoch: reading a number makes a GPU wait.
            for name, value in {"loss": loss.detach(), **diagnostics}.items():
                totals[name] = totals.get(name, 0) + value
        row = {"epoch": epoch + 1, **{name: float(total) / steps for name, total in totals.items()}}
        row["lr"] = optimizer.param_groups[0]["lr"]
        row["seconds"] = time.perf_counter() - started
        if target.type == "cpu":  # a GPU works on while the host goes ahead: its share cannot be read off here
            row["view_share"] = view_seconds / row["seconds"]
        _check_health(row, history, run, stop_on_collapse)
        if monitor is not None and ((epoch + 1) % monitor_every == 0 or epoch + 1 == epochs):
            row.update(monitor(method.encoder))
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
        return Run.in_memory(device=device, **settings), None
    if not isinstance(run, Run):
        folder = Path(run)
        run = Run.open(folder) if (folder / "record.json").exists() else Run.create(folder, device=device)
    if run.resume_path.exists():
        fresh = Run.in_memory(device=device, **settings).record
        for name in settings:
            if run.record.get(name) != fresh[name]:
                raise TrainingError(
                    f"{run.folder} holds a run with another {name}: {run.record.get(name)!r}, not {fresh[name]!r}; "
                    "repeat its settings to go on with it, or name another folder"
                )
        return run, run.load_resume()
    run.update(**settings)
    return run, None


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
    run.save_resume(state)
    run.save_encoder(getattr(method.encoder, "network", method.encoder))
    run.save()


def _restore_generators(states: dict[str, Tensor], generator: torch.Generator, device: torch.device) -> None:
    generator.set_state(states["views"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _check_health(row: dict, history: list[dict], run: Run, stop_on_collapse: bool) -> None:
    """Raise on a loss that is no number, and on embeddings that have fallen together, before anything is saved."""
    kept = f"the checkpoint of epoch {len(history)} is kept in {run.folder}" if run.folder and history else "none is kept"
    if not math.isfinite(row["loss"]):
        raise TrainingError(
            f"the loss is {row['loss']} in epoch {row['epoch']} ({kept}); try a lower lr, a longer warm-up, or precision fp32"
        )
    spread = row.get("embedding_std")
    if spread is None or not history or not stop_on_collapse:
        return
    widest = max(past["embedding_std"] for past in history)
    if spread < max(COLLAPSED * widest, COLLAPSED_ALWAYS):
        raise TrainingError(
            f"the embeddings collapse in epoch {row['epoch']}: their spread is {spread:.4f} of an even one, after up to "
            f"{widest:.4f} ({kept}); see lesson 06, or pass stop_on_collapse=False to watch it happen"
        )


def _explained(error: RuntimeError, batch_size: int, image_size: int, device: torch.device) -> Exception:
    """An out-of-memory error with the batch to try; any other error as it is."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return error
    if device.type == "cuda":
        memory = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB of {device}"
    else:
        memory = f"the memory of this machine ({os.cpu_count()} cores)"
    return TrainingError(
        f"a batch of {batch_size} at {image_size} pixels does not fit in {memory}; "
        f"try batch_size={max(2, batch_size // 2)} (a restarted run keeps its finished epochs)"
    )
