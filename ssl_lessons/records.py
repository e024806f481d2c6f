"""A run on disk: one folder that holds what was asked, what happened, and the weights.

    record.json          settings, versions, device, dataset, history, metrics: every quoted number's source
    encoder.safetensors  the network's weights; they load into the plain network with strict=True
    resume.pt            everything else that a run needs to go on: optimiser, queue, generators, …

One process writes into a folder, and each file is written under a temporary name and renamed, so that whoever
kills the process leaves the last good version in place. torch is loaded when weights are: a leaderboard of a
thousand records does not wait for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import torch

SCHEMA = 1
REQUIRED = ("schema", "versions", "device", "dataset", "recipe", "seed", "seconds", "history", "metrics")

# What a reader calls each method; a record has the name of its class, whose case does not count.
TITLES = {
    "simclr": "SimCLR",
    "moco": "MoCo v2",
    "relational": "relational reasoning",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "supervised": "supervised",
    "random": "random encoder",
    "pixels": "raw pixels",
    "colours": "counted colours",
}


class RecordError(Exception):
    """A run folder that is missing, damaged, in use, or of a newer version; the message names the file."""


def results_folder() -> Path:
    """The committed run records: data/results of the checkout, or those that a wheel carries."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data" / "results"
    return checkout if checkout.is_dir() else package / "results"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    numbers = {"python": platform.python_version()}
    for package in ("ssl-lessons", "torch", "torchvision", "numpy"):
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout on the path without an install
            numbers[package] = "not installed"
    return numbers


def device_name(device: torch.device) -> str:
    """What a reader should know of the device: "NVIDIA T4", or "CPU, 2 cores (x86_64, AVX512)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        threads, cores = torch.get_num_threads(), os.cpu_count()
        used = f"{cores} cores" if threads >= cores else f"{threads} of {cores} cores"
        return f"CPU, {used} ({platform.machine()}, {capability})"
    return device.type


def main_process() -> bool:
    """Whether this process writes and prints: the only one, or the first of several."""
    torch = sys.modules.get("torch")  # a reader of records need not load it
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def source_of(kind: type) -> str | None:
    """A fingerprint of the code of a class and its parents, for the settings of a run or an experiment.

    Functions (those attached later too) and plain attributes count, comments and layout do not. Classes of
    this package and of PyTorch are left out: a record has their versions. None where nothing is left, or
    Python has no source for it (code that was typed at a prompt).
    """
    parts = []
    own = [parent for parent in kind.__mro__ if parent.__module__.split(".")[0] not in _VERSIONED]
    for name, value in [item for parent in own for item in sorted(vars(parent).items())]:
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if inspect.isroutine(function):
            try:
                source = textwrap.dedent(inspect.getsource(function))
                parts.append(ast.unparse(ast.parse(source)))
            except SyntaxError:  # a lambda in the middle of an expression
                parts.append(source)
            except (OSError, TypeError):
                return None
        elif not name.startswith("__") and isinstance(value, (bool, int, float, str, tuple)):
            parts.append(f"{name} = {value!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else None


_VERSIONED = ("ssl_lessons", "torch", "builtins")


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary name beside `path`, flush it to disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value):
    """What JSON can hold: policies and tuples opened up, tensors as numbers, NaN as null."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of torch or NumPy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.name
    return value


def _write(path: Path, record: dict) -> None:
    """A record as a file, atomically."""
    text = json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_weights(path: Path, network: torch.nn.Module, half: bool = False) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in network.state_dict().items():
        dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    atomically(path, lambda temporary: save_file(tensors, temporary))


class Run:
    """A run folder. `Run.create` makes one, `Run.open` reads one; `record` is its plain dictionary."""

    def __init__(self, folder: Path | None, record: dict):
        self.folder = folder  # None: kept in memory only
        self.record = record

    @property
    def encoder_path(self) -> Path:
        return self.folder / "encoder.safetensors"

    @property
    def resume_path(self) -> Path:
        return self.folder / "resume.pt"

    @classmethod
    def in_memory(cls, *, device: torch.device | str = "cpu", **settings) -> Run:
        """A run that is kept nowhere: a record with versions, device, time and the given settings."""
        import torch

        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"schema": SCHEMA, "started": started, "versions": versions()}
        record |= {"device": device_name(torch.device(device)), "dataset": None, "recipe": None}
        record |= {"profile": None, "seed": None, "seconds": 0.0, "history": [], "metrics": {}}
        return cls(None, {**record, **_plain(settings)})

    @classmethod
    def create(cls, folder: str | Path, *, device: torch.device | str = "cpu", **settings) -> Run:
        """Start a run in `folder` (made if missing) and write its first record. Settings join the record."""
        run = cls.in_memory(device=device, **settings)
        run.folder = Path(folder)
        run.folder.mkdir(parents=True, exist_ok=True)
        run.save()
        return run

    @classmethod
    def at(cls, folder: str | Path | None, **settings) -> Run:
        """The run in `folder`, opened or created; None: one in memory. Settings are those of a new one."""
        if folder is None:
            return cls.in_memory(**settings)
        return cls.open(folder) if Path(folder, "record.json").exists() else cls.create(folder, **settings)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Read a run folder (or a lone record file) and check that its record is whole.

        Raises `RecordError` with the file's name if it is missing, damaged, too new, or lacks a part.
        """
        path = Path(folder)
        path = path if path.suffix == ".json" else path / "record.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RecordError(f"no record at {path}; name a run's folder, the one with record.json") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecordError(f"{path} is damaged ({error}); delete its folder and run it again") from None
        if not isinstance(record, dict) or not isinstance(schema := record.get("schema"), int):
            raise RecordError(f"{path} is not a run record: it has no schema number")
        if schema > SCHEMA:
            raise RecordError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; update it")
        kinds = {"versions": dict, "seconds": (int, float), "history": list, "metrics": dict}
        missing = [n for n in REQUIRED if n not in record or not isinstance(record[n], kinds.get(n, object))]
        if missing:
            raise RecordError(f"{path} lacks {', '.join(missing)}; delete its folder and run it again")
        return cls(path.parent, record)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder: one process writes into it. The system lets go of it when that process ends,
        killed or not. Raises `RecordError` at once where another process holds it."""
        if self.folder is None or not main_process():
            yield
            return
        # a singleton: whoever holds it in this process may take it again
        path = self.folder.resolve() / ".lock"
        lock = FileLock(path, timeout=0, is_singleton=True, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise RecordError(
                f"another process is writing into {self.folder}; wait for it to end, or name another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def update(self, **settings) -> None:
        """Set parts of the record and write it."""
        self.record.update(_plain(settings))
        self.save()

    def save(self) -> None:
        """Write record.json atomically. A run in memory stays there, and of several processes one writes."""
        if self.folder is not None and main_process():
            with self.writing():
                _write(self.folder / "record.json", self.record)

    def add_metric(self, name: str, value: float, **details) -> None:
        """Add a judged number with its protocol to the record, and write that; details say how it came."""
        self.record["metrics"][name] = _plain({"value": value, **details})
        self.save()

    def save_encoder(self, network: torch.nn.Module) -> None:
        """Write the network's weights (tied ones twice) as encoder.safetensors, atomically."""
        _write_weights(self.encoder_path, network)

    def load_encoder(self, network: torch.nn.Module) -> None:
        """Load encoder.safetensors into a network of the same architecture, every name and shape matching.

        Raises `RecordError` if the file is missing, damaged, or holds another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.encoder_path.exists():
            raise RecordError(f"{self.encoder_path} is missing: has the run finished an epoch, or moved?")
        try:
            network.load_state_dict(load_file(self.encoder_path), strict=True)
        except SafetensorError as error:
            raise RecordError(f"{self.encoder_path} is damaged ({error}); run it again") from None
        except RuntimeError as error:
            kind = type(network).__name__
            raise RecordError(f"{self.encoder_path} is not of this {kind}, stem included: {error}") from None

    def publish(self, folder: str | Path, name: str, network: torch.nn.Module) -> Path:
        """Write a trained network for others: NAME.safetensors, floats in half precision, and NAME.json
        beside it, this run's record with the weights' sha256. `evaluate.pretrained` reads them."""
        path = Path(folder, f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_weights(path, network, half=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        _write(path.with_suffix(".json"), {**self.record, "sha256": digest})
        return path

    def save_resume(self, state: dict) -> None:
        """Write everything needed to go on after this moment, atomically."""
        import torch

        atomically(self.resume_path, lambda path: torch.save(state, path))

    def load_resume(self) -> dict:
        """Read resume.pt; only tensors and plain values are accepted (weights_only)."""
        import torch

        try:
            return torch.load(self.resume_path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise RecordError(f"{self.resume_path} is missing: there is nothing to resume") from None
        except Exception as error:  # a truncated or foreign file: torch raises many kinds
            raise RecordError(f"{self.resume_path} is damaged ({error}); delete it to start over") from error
