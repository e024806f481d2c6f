"""A run on disk: one folder that holds what was asked, what happened, and the weights.

    record.json          settings, versions, device, dataset, history, metrics: every quoted number's source
    encoder.safetensors  the network's weights; they load into the plain network with strict=True
    resume.pt            everything that a run needs to go on: record, all weights, optimiser, generators

One process writes into a folder. Each file has a checksum and is renamed into place when it is whole, first
resume.pt, from which the others can be made again. torch is loaded with weights.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import enum
import errno
import functools
import hashlib
import importlib.metadata
import inspect
import io
import json
import math
import os
import platform
import sys
import textwrap
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ssl_lessons import parameters

if TYPE_CHECKING:
    import torch

SCHEMA = 1
REQUIRED = {"schema": int, "versions": dict, "device": object, "dataset": object, "recipe": object}
REQUIRED |= {"seed": object, "seconds": (int, float), "history": list, "metrics": dict}

# What a reader calls each method; a record has the name of its class, whose case does not count.
TITLES = {"simclr": "SimCLR", "moco": "MoCo v2", "relational": "relational reasoning", "byol": "BYOL"}
TITLES |= {"simsiam": "SimSiam", "supervised": "supervised", "random": "random encoder"}
TITLES |= {"pixels": "raw pixels", "colours": "counted colours"}
_VERSIONED = ("ssl_lessons", "torch", "torchvision", "timm", "builtins")  # packages with a version
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")


class RecordError(Exception):
    """A run folder that is missing, damaged, in use, full or too new; the message names the file."""


class Unreadable(RecordError):
    """A file that is whole, but not to be read now or here: nothing is made in its place."""


def results_folder() -> Path:
    """The committed run records: data/results of the checkout, or those that a wheel carries."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data" / "results"
    return checkout if checkout.is_dir() else package / "results"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    numbers = {"python": platform.python_version()}
    for package in ("ssl-lessons", "torch", "torchvision", "numpy"):
        numbers[package] = "not installed"  # a checkout on the path without an install
        with suppress(importlib.metadata.PackageNotFoundError):
            numbers[package] = importlib.metadata.version(package)
    return numbers


def device_name(device: torch.device | str) -> str:
    """What a reader should know of the device: "NVIDIA T4", or "CPU, 2 cores (x86_64, AVX512)"."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind != "cpu":
        return kind
    capability = torch.backends.cpu.get_cpu_capability()
    threads, cores = torch.get_num_threads(), os.cpu_count()
    used = f"{cores} cores" if threads >= cores else f"{threads} of {cores} cores"
    return f"CPU, {used} ({platform.machine()}, {capability})"


def main_process() -> bool:
    """Whether this process writes and prints: the only one, or the first of several."""
    torch = sys.modules.get("torch")  # a reader of records need not load it
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _is_versioned(value) -> bool:
    """Whether a class, function or module is of a package whose version stands in the record."""
    name = getattr(value, "__module__", None) or getattr(value, "__name__", "builtins")
    return str(name).split(".")[0] in _VERSIONED  # a class of Cython's has no text there


def source_of(kind: type) -> str | None:
    """A fingerprint of the code of a class and its parents, or of a function, for the settings of a run.
    Comments and layout do not count. Classes of this package, PyTorch and its libraries are left out, as a
    record has their versions. None: nothing is left."""
    members = []
    for owner in getattr(kind, "__mro__", (kind,)):
        if not _is_versioned(owner):
            members += sorted(vars(owner).items()) if isinstance(owner, type) else [("", owner)]
    parts = []
    for name, value in members:
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if inspect.isroutine(function):
            try:
                parts.append(ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function)))))
            except (OSError, TypeError, SyntaxError):  # typed at a prompt, by `dataclass`, a part of a line
                parts.append(str(_code(function.__code__) if hasattr(function, "__code__") else name))
        elif not name.startswith("__") and isinstance(value, (bool, int, float, str, tuple)):
            parts += [f"{name} = {value!r}"] if " at 0x" not in repr(value) else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else None


_PASSING = ("run_steps", "needs_after_step", "recipe")  # of a method: what a run sets, or notes by itself


def _code(code: types.CodeType) -> list:
    """What a function does, where its source is not to be had, or is a part of a line."""
    sets = [sorted(map(repr, part)) for part in code.co_consts if isinstance(part, frozenset)]
    others = [part for part in code.co_consts if not isinstance(part, frozenset)]
    constants = [_code(part) if inspect.iscode(part) else repr(part) for part in others]
    return [code.co_code, code.co_names, constants, sets]


def _called(function: types.FunctionType) -> list:
    """The functions, classes and plain values of a user's that a function finds by a global name."""
    found, codes = {}, [function.__code__]
    for code in codes:
        codes += [part for part in code.co_consts if inspect.iscode(part)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                found[step.argval] = function.__globals__[step.argval]
    values = [found[name] for name in sorted(found)]
    code = [
        part for part in values if isinstance(part, types.FunctionType | type) and not _is_versioned(part)
    ]
    return [part for part in values if isinstance(part, bool | int | float | str | tuple)] + code


def configuration(value, seen: dict | None = None):
    """How an object is set up, for `digest`: its class, its code and what it calls, its attributes and
    parts; of a function its code, what it closes over and calls. Without weights, attributes that begin with
    _, and what was `seen`. Of Python's own objects (a logger) only the class counts."""
    seen, kind = {} if seen is None else seen, type(value)

    def of(parts) -> list | dict:
        if isinstance(parts, dict):
            return {str(name): configuration(part, seen) for name, part in parts.items()}
        return [configuration(part, seen) for part in parts]

    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    if value is None or kind in (bool, int, float, str, bytes) or isinstance(value, tensor):
        return value
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # NumPy's
        return [str(value.dtype), value.shape, value.tobytes()]
    if isinstance(value, tuple):  # Python may keep two equal ones as one
        return of(value)
    if id(value) in seen or len(seen) > 20_000:  # a ring, or what nobody sets up by hand
        return None
    seen[id(value)] = value
    if isinstance(value, (dict, list)):
        return of(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))  # each process has another order
    if isinstance(value, functools.partial):
        return of([value.func, value.args, value.keywords])
    if inspect.ismethod(value):
        return of([value.__func__, value.__self__])
    name = getattr(value, "__qualname__", kind.__qualname__)
    if inspect.isfunction(value) and not _is_versioned(value):
        cells = [cell for cell in value.__closure__ or () if "empty" not in repr(cell)]
        source = None if value.__name__ == "<lambda>" else source_of(value)
        said = [cell.cell_contents for cell in cells] + [value.__defaults__, value.__kwdefaults__]
        return [name, source or _code(value.__code__), of([*said, *_called(value)])]
    members = {}
    for owner in reversed((value if isinstance(value, type) else kind).__mro__):
        members |= {} if _is_versioned(owner) else vars(owner)
    members = dict(sorted(members.items()))
    public = [member for key, member in members.items() if key[0] != "_"]
    shared = [member for member in public if isinstance(member, (list, dict, tuple, set))]
    functions = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members.values()]
    calls = [part for function in functions if inspect.isfunction(function) for part in _called(function)]
    if isinstance(value, type):
        return [name, source_of(value), of(shared + calls)]
    if isinstance(value, (enum.Enum, range, Path)) or kind.__name__ in ("dtype", "device"):
        return [name, str(value)]
    if isinstance(value, types.ModuleType) or str(kind.__module__).split(".")[0] in sys.stdlib_module_names:
        return [name, getattr(value, "__name__", "")]
    own = [key for key in getattr(value, "__dict__", {}) if key[0] != "_" and key not in _PASSING]
    # what stands for a method of its class is no setting
    parts = {key: vars(value)[key] for key in own if not callable(getattr(kind, key, None))}
    if hasattr(value, "named_children"):  # a module
        parts |= value._modules
        parts |= {key: value._buffers[key] for key in value._non_persistent_buffers_set}
        weights = value.named_parameters(recurse=False)
        parts["frozen weights"] = [key for key, weight in weights if not weight.requires_grad]
    return [name, source_of(kind), of(shared + calls), of(parts)]


def digest(value) -> str:
    """The sha256, in hex, of what tensors and plain values in dictionaries and lists say."""
    total = hashlib.sha256()

    def feed(value) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                feed(str(key))
                feed(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                feed(item)
        elif hasattr(value, "detach"):
            import torch

            feed(f"{value.dtype} {tuple(value.shape)}")
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:
            total.update(repr(value).encode(errors="backslashreplace"))
        total.update(b"\n")

    feed(value)
    return total.hexdigest()


def atomically(path: Path, write: Callable[[Path], object], size: int = 0) -> None:
    """Call `write` on a temporary name beside `path`, flush it to disk, and rename it into place. `size` in
    bytes is for the message. RecordError: it cannot be written; the old version is kept."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        needed = f", {size / 1e6:.3g} MB needed" if size else ""
        reason = f"disk full{needed}" if error.errno in _FULL else error.strerror
        raise RecordError(f"{path} cannot be written ({reason}); the last version is kept") from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # renamed, if all went well


def _write_bytes(path: Path, data: bytes | memoryview) -> None:
    atomically(path, lambda temporary: temporary.write_bytes(data), len(data))


def write_state(path: Path, state: dict) -> None:
    """Tensors and plain values with their checksum, atomically, for `read_state`."""
    import torch

    file = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save({**state, "checksum": digest(state)}, file)
    _write_bytes(path, file.getbuffer())


def read_state(path: Path, *parts: str) -> dict:
    """What `write_state` wrote, `parts` among it. RecordError: missing, damaged, or another program's."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code that is in it
        checksum = state.pop("checksum", None)
        # an older version's has none, but the checksums of a zip archive, which torch does not look at
        intact = digest(state) == checksum if checksum else zipfile.ZipFile(path).testzip() is None
    except FileNotFoundError:
        raise RecordError(f"{path} is missing: there is nothing to resume") from None
    except Exception as error:  # of a truncated or foreign file torch raises many kinds, with risky advice
        _check_readable(path, error)
        intact = False
    if not intact or not {*parts} <= state.keys():
        raise RecordError(f"{path} is damaged, or not of this package; delete it to start over")
    return state


def of_memory(error: Exception) -> bool:
    """Whether there was too little of it; torch has no one class for that."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _check_readable(path: Path, error: Exception) -> None:
    """Raise `Unreadable` where it is not the content of a file that an error is about."""
    if isinstance(error, OSError) or of_memory(error):  # bad content raises others
        reason = getattr(error, "strerror", None) or "not enough memory"
        raise Unreadable(f"{path} cannot be read ({reason}); nothing is changed") from error


def _plain(value):
    """What JSON can hold: recipes opened up, tensors as numbers, of a path its name, NaN as null."""

    def opened(part):
        if dataclasses.is_dataclass(part):
            return keyed(dataclasses.asdict(part))
        if isinstance(part, Path):
            return part.name
        if hasattr(part, "tolist"):
            return part.tolist()
        if callable(part):
            return getattr(part, "__qualname__", type(part).__qualname__)
        raise TypeError(f"a record cannot hold {part!r:.100}; give numbers, text, or lists of them")

    def keyed(part):
        if isinstance(part, dict):
            return {str(key): keyed(member) for key, member in part.items()}
        return [keyed(member) for member in part] if isinstance(part, list | tuple) else part

    return json.loads(json.dumps(keyed(value), default=opened), parse_constant=lambda name: None)


def _checksum(record: dict) -> str:
    return digest({name: part for name, part in record.items() if name != "checksum"})


def _write(path: Path, record: dict) -> str:
    """A record as a file, atomically; returns its checksum, which is in it."""
    plain = _plain(record)
    plain["checksum"] = _checksum(plain)
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # a file's name need not be UTF-8; JSON reads \udc80
    _write_bytes(path, text.encode(errors="backslashreplace"))
    return plain["checksum"]


def _read(path: Path) -> dict:
    """The record in a file. RecordError: it is missing, damaged, too new, or lacks a part."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"no record at {path}; name a run's folder, the one with record.json") from None
    except (OSError, ValueError, RecursionError) as error:  # no text, no JSON
        _check_readable(path, error)
        raise RecordError(f"{path} is damaged ({error}); delete its folder and run it again") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int):
        raise RecordError(f"{path} is not a run record: it has no schema number")
    if schema > SCHEMA:
        raise Unreadable(f"{path} has schema {schema}, this version reads up to {SCHEMA}; update it")
    missing = [n for n, kind in REQUIRED.items() if n not in record or not isinstance(record[n], kind)]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; delete its folder and run it again")
    if "checksum" in record and record["checksum"] != _checksum(record):  # an older version's has none
        raise RecordError(f"{path} is damaged (its checksum is another); delete its folder and run it again")
    return record


def _write_weights(path: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write weights, each tensor a contiguous copy of its own on the CPU (tied ones twice); the copies."""
    from safetensors.torch import save

    copies = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in weights.items()}
    _write_bytes(path, save(copies))
    return copies


def _encoder_in(state: dict) -> dict[str, torch.Tensor]:
    """The plain network's weights in a checkpoint."""
    tapped = any(name.startswith("encoder.network.") for name in state["method"])
    prefix = "encoder.network." if tapped else "encoder."
    weights = {name: t for name, t in state["method"].items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): t for name, t in weights.items()}


class Run:
    """A run folder. `Run.create` makes one, `Run.open` reads one; `record` is its plain dictionary."""

    def __init__(self, folder: Path | None, record: dict):
        self.folder = folder  # None: kept in memory only
        self.encoder_path = folder and folder / "encoder.safetensors"
        self.resume_path = folder and folder / "resume.pt"
        self.record = record

    @classmethod
    def in_memory(cls, *, device: torch.device | str = "cpu", **settings) -> Run:
        """A run that is kept nowhere: its record has versions, device, time and the given settings."""
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"schema": SCHEMA, "started": started, "versions": versions(), "device": device_name(device)}
        record |= dict.fromkeys(("dataset", "recipe", "profile", "seed"))
        record |= {"seconds": 0.0, "history": [], "metrics": {}}
        return cls(None, {**record, **_plain(settings)})

    @classmethod
    def create(cls, folder: str | Path, *, device: torch.device | str = "cpu", **settings) -> Run:
        """Start a run in `folder` (made if missing) and write its first record, over one that is there."""
        run = cls(parameters.folder(folder), cls.in_memory(device=device, **settings).record)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{folder} cannot be made ({error.strerror}); name another folder") from None
        run.save(over=True)
        return run

    @classmethod
    def at(cls, folder: str | Path | None, **settings) -> Run:
        """The run in `folder`, opened or created; None: one in memory. Settings are for a run in which
        nothing has been trained or judged yet."""
        if folder is None:
            return cls.in_memory(**settings)
        place = parameters.folder(folder)
        if not any(os.path.exists(place / name) for name in ("record.json", "resume.pt")):
            return cls.create(folder, **settings)
        run = cls.open(folder)
        begun = run.record["history"] or run.record["metrics"] or run.encoder_path.exists()
        if not begun and not run.resume_path.exists():  # a first try that was refused, or killed
            fresh = cls.in_memory(**settings).record
            run.record.update({name: fresh[name] for name in settings})
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Read a run folder, or a lone record file. RecordError: the record is missing, damaged, too new, or
        lacks a part, and a folder has no whole resume.pt to take it from (with a word on stderr)."""
        path = parameters.folder(folder)
        if path.suffix == ".json" and not path.is_dir():
            return cls(path.parent, _read(path))
        try:
            return cls(path, _read(path / "record.json"))
        except Unreadable:
            raise
        except RecordError as error:
            run = cls(path, {})
            state = run.load_resume() if run.resume_path.exists() else {}
            if state.get("record", {}).get("schema", math.inf) > SCHEMA:  # older versions kept none there
                raise
            run.restore(state)
            # on stderr: standard output may be a program's JSON
            print(f"ssl-lessons: {error}. It is taken from resume.pt; judge it again", file=sys.stderr)
            return run

    def restore(self, state: dict) -> bool:
        """Make the record that of a checkpoint, less what was judged at another epoch; whether it changed.
        RecordError: the checkpoint is another run's."""
        before, kept = self.record, state.get("record", {})
        for name in ("started", "method", "seed"):  # older versions kept none of them there
            if before.get(name) is not None and kept.get(name, before[name]) != before[name]:
                was = f"its {name} is {kept[name]!r}, the record's {before[name]!r}"
                raise RecordError(f"{self.resume_path} is of another run ({was}); put the right one there")
        if len(before.get("history", ())) == len(state["history"]):
            record = {**kept, **before}
        else:
            record = {**before, "metrics": {}, **kept}
        self.record = {**record, "history": state["history"], "seconds": state["seconds"]}
        self.record["encoder_checksum"] = digest(_encoder_in(state))
        return self.record != before or "checksum" not in before

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder: one process writes into it, and lets go of it when it ends, killed or not.
        RecordError, at once: another process holds it."""
        if self.folder is None or not main_process():
            yield
            return
        # a singleton: whoever holds it in this process may take it again
        path = self.folder.resolve() / ".lock"
        lock = FileLock(path, timeout=0, is_singleton=True, thread_local=False)
        try:
            held = lock.acquire()
        except Timeout:
            raise RecordError(f"another process is writing into {self.folder}; wait for it to end") from None
        except OSError as error:
            raise RecordError(f"{self.folder} cannot be written ({error.strerror})") from None
        with held:
            yield

    def _others(self) -> dict | None:
        """The record that another process has written since ours was read or written, if any."""
        with suppress(RecordError):  # missing or damaged: ours is better
            record = _read(self.folder / "record.json") if self.folder else self.record
            return None if record.get("checksum") == self.record.get("checksum") else record

    def refresh(self) -> None:
        """Take over what another process has written since this record was read."""
        self.record = self._others() or self.record

    def update(self, **settings) -> None:
        """Set parts of the record and write it."""
        self.record.update(_plain(settings))
        self.save()

    def save(self, over: bool = False) -> None:
        """Write record.json, with what another process has judged meanwhile, unless `over`. A run in memory
        stays there, and of several processes one writes. RecordError: another has trained on."""
        if self.folder is None or not main_process():
            return
        for name, metric in _plain(self.record["metrics"]).items():
            value = metric.get("value", "") if isinstance(metric, dict) else ""
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise RecordError(f"metric {name} is {metric!r:.100}; note it by add_metric(name, number)")
        with self.writing():
            others = None if over else self._others()
            if others and others.get("encoder_checksum") != self.record.get("encoder_checksum"):
                raise RecordError(f"another process has trained on in {self.folder}; judge it again")
            if others:
                metrics = {**others["metrics"], **self.record["metrics"]}
                self.record = {**others, **self.record, "metrics": metrics}
            self.record["checksum"] = _write(self.folder / "record.json", self.record)

    def add_metric(self, name: str, value: float, **details) -> None:
        """Write a judged number into the record; details say how it came."""
        self.record["metrics"][name] = _plain({"value": value, **details})
        self.save()

    def save_encoder(self, network: torch.nn.Module) -> None:
        """Write the network's weights as encoder.safetensors, and the record with their checksum."""
        weights = _write_weights(self.encoder_path, network.state_dict())
        self.update(encoder_checksum=digest(weights))

    def encoder(self) -> dict[str, torch.Tensor]:
        """The network's weights. An encoder.safetensors that is missing, damaged or another run's is made
        again from resume.pt, with a word on stderr. RecordError: there is no whole resume.pt either."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            weights = load(self.encoder_path.read_bytes())
            if self.record.get("encoder_checksum") in (None, digest(weights)):  # None: an older version's
                return weights
            problem = "is not the one of its record"
        except FileNotFoundError:
            problem = "is missing"
        except (SafetensorError, OSError) as error:
            _check_readable(self.encoder_path, error)
            problem = f"is damaged ({error})"
        if not self.resume_path.exists():
            raise RecordError(f"{self.encoder_path} {problem}, and no resume.pt is there: train again")
        state = self.load_resume()
        weights = _encoder_in(state)
        self.restore(state)
        print(f"ssl-lessons: {self.encoder_path} {problem}: it is taken from resume.pt", file=sys.stderr)
        with suppress(RecordError), self.writing():  # unless it is trained on at this moment
            if self._others() is None:
                _write_weights(self.encoder_path, weights)
                self.save()
        return weights

    def load_encoder(self, network: torch.nn.Module) -> None:
        """Load the weights into a network. RecordError: damaged beyond repair, or another architecture's."""
        weights = self.encoder()
        try:
            network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            kind = type(network).__name__
            raise RecordError(f"{self.encoder_path} is not of this {kind}: {error}") from None

    def publish(self, folder: str | Path, name: str, network: torch.nn.Module) -> Path:
        """Write a network for `evaluate.pretrained`: NAME.safetensors, floats in half precision, and
        NAME.json, this run's record with the weights' sha256."""
        path = Path(folder, f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = network.state_dict()
        for name, tensor in weights.items():
            half = tensor.half() if tensor.is_floating_point() else tensor
            weights[name] = half if half.isfinite().all() else tensor  # 70,000 is none
        _write_weights(path, weights)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        _write(path.with_suffix(".json"), {**self.record, "sha256": sha256})
        return path

    def save_resume(self, state: dict) -> None:
        """Write everything needed to go on after this moment, and the record's settings."""
        record = {name: part for name, part in self.record.items() if name not in ("history", "checksum")}
        write_state(self.resume_path, {**state, "record": _plain(record)})

    def load_resume(self) -> dict:
        """Read resume.pt, see `read_state`; "scaler" and "record" are in it too."""
        return read_state(self.resume_path, "method", "optimizer", "generators", "history", "seconds")
