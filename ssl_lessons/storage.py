"""Files on disk: where they lie, how they are written safely, and the cache of decoded images.

A cache file holds one split at one size in the safetensors layout: `images` uint8 (N, S, 3, S) and `labels`
int64 (N,). It is written row by row under another name and opened as a memory map, so that no dataset is ever
in memory whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: still atomic, but two processes may do the same work twice
    fcntl = None

_HASHED = 256 << 20  # bytes: a cache file up to this is hashed whenever it is opened (0.1 to 0.6 s)
_MOST_SKIPPED = 1000  # more undecodable files than that are an error, strict or not


class DataError(RuntimeError):
    """Images that are missing, damaged or do not fit; the message names the file and the way out."""


# ---- Where files lie -------------------------------------------------------------------------------------


def data_root() -> Path:
    """The folder of downloads: $SSL_LESSONS_DATA; else `data/` of the checkout (a folder with notebooks/ and
    ssl_lessons/) around the working directory, then around this file; else ~/.cache/ssl-lessons."""
    if named := os.environ.get("SSL_LESSONS_DATA"):
        root = Path(named).expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise DataError(f"SSL_LESSONS_DATA is {named!r}, which is a file: let it name a folder")
        return root
    here = Path.cwd()
    for place in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (place / "notebooks").is_dir() and (place / "ssl_lessons").is_dir():
            return place / "data"
    return Path("~/.cache/ssl-lessons").expanduser()


def cache_root() -> Path:
    """The folder of decoded images, made if missing: data_root()/cache; where that cannot be written
    (a Kaggle input, a shared disk), ($XDG_CACHE_HOME or ~/.cache)/ssl-lessons."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl-lessons"
    for place in (data_root() / "cache", user):
        if writable(place):
            return place
    raise DataError(
        f"neither {data_root()} nor {user} can be written: let SSL_LESSONS_DATA name one that can"
    )


def writable(place: Path) -> bool:
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK)
    return False


def ram() -> int:
    """Bytes of memory of this machine; 8 GiB where the system does not say."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30


def find(name: str) -> Path | None:
    """A file or folder below the data root or the cache root, or None."""
    return next((place / name for place in (data_root(), cache_root()) if (place / name).exists()), None)


@contextlib.contextmanager
def building(target: Path, need: int, keep: bool = False) -> Iterator[Path]:
    """The right to build `target`, one process at a time, and the path to build it under before renaming it.

    A failure leaves nothing at that path (with `keep`, only a full disk clears it). A disk that is full,
    before or during the work, raises DataError with the `need` in bytes. The lock ends when its process does.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock, handle, locked = target.with_name(f".{target.name}.lock"), None, False
    while fcntl is not None:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
        with contextlib.suppress(OSError):  # a network disk without locks: go on, renaming is still atomic
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                break
        os.close(handle)  # its last holder removed it while we waited: take the new one
    mine = "" if locked or keep else f".{os.getpid()}"  # without a lock, two builders must not share a file
    part = target.with_name(f".{target.name}{mine}.part")
    try:
        have = part.stat().st_size if keep and part.exists() else 0
        if need - have > (free := shutil.disk_usage(target.parent).free):
            raise OSError(errno.ENOSPC, f"{free / 1e6:,.1f} MB are free")
        yield part
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or not keep:
            remove(part)
        if full:
            raise DataError(
                f"no room for {target}, which takes {need / 1e6:,.1f} MB ({error.strerror}). Nothing was "
                "left behind. Free some space, or let SSL_LESSONS_DATA name a folder on another disk."
            ) from error
        raise
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def progress_to(total: int, label: str, show: bool) -> Callable[[int], None]:
    """A function that moves a progress bar to `done` of `total`, or does nothing."""
    if not show or total < 1:
        return lambda done: None
    from fastprogress import progress_bar  # here, because it loads a web framework

    print(label)
    bar = progress_bar(range(total), leave=False)
    bar.update(0)
    return lambda done: bar.update(min(done, total))


# ---- Decoding -------------------------------------------------------------------------------------------


def decode(path: str, size: int) -> np.ndarray:
    """One file as uint8 (S, 3, S): upright, RGB, the largest central square, resized with antialiasing."""
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded smaller, never below twice S
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return square(image.convert("RGB"), size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """The largest central square of an RGB image as uint8 (S, 3, S)."""
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return rows(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)))


def rows(pixels: np.ndarray) -> np.ndarray:
    """(S, S, 3) -> (S, 3, S), copied: the layout in which views.py works."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 1))


# ---- The cache ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is to be decoded: `pixels(i)` gives image i as uint8 (S, 3, S), `labels` is int64 (N,) or None."""

    origin: str
    names: list[str]
    classes: tuple[str, ...]
    labels: np.ndarray | None
    pixels: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """The contents of a cache file: images uint8 (N, 3, S, S), a view of (N, S, 3, S); labels int64 (N,)."""

    images: Tensor
    labels: Tensor | None
    fingerprint: str
    skipped: tuple[str, ...]
    origin: str


def cached(
    name: str, size: int, source: str, plan: Callable[[], Plan], strict: bool, progress: bool
) -> Decoded:
    """What the cache file `name` holds; built from `plan()` if it is missing, damaged or of another `source`.

    Files that cannot be decoded are left out with a warning that names and counts them; DataError if strict.
    """
    path = cache_root() / f"{name}-{size}.safetensors"
    found = reopen(path, source)
    if found is None:
        todo = plan()
        with building(path, len(todo.names) * (3 * size * size + 8) + (1 << 16)) as part:
            found = reopen(path, source)  # another process may have been faster
            if found is None:
                _write(part, todo, size, source, strict, progress)
                os.replace(part, path)
        found = found or reopen(path, source)
    if count := len(found.skipped):
        words = f"{count} of {count + len(found.images)} files of {found.origin} cannot be decoded"
        few = ", ".join(found.skipped[:5]) + ", ..." * (count > 5)
        if strict:
            raise DataError(f"{words}: {few}. Remove them, or leave them out with strict=False.")
        warnings.warn(f"{words} and are left out: {few}", stacklevel=4)
    return found


def _write(part: Path, todo: Plan, size: int, source: str, strict: bool, progress: bool) -> None:
    count, digest, kept, skipped = len(todo.names), hashlib.sha256(), [], []

    def header() -> bytes:
        end = len(kept) * size * size * 3
        meta = {"source": source, "origin": todo.origin, "fingerprint": digest.hexdigest()}
        meta |= {"classes": json.dumps(todo.classes), "skipped": json.dumps(skipped)}
        images = {"dtype": "U8", "shape": [len(kept), size, 3, size], "data_offsets": [0, end]}
        labels = {"dtype": "I64", "shape": [len(kept)], "data_offsets": [end, end + 8 * len(kept)]}
        labelled = {} if todo.labels is None else {"labels": labels}
        return json.dumps({"__metadata__": meta, "images": images, **labelled}).encode()

    def row(i: int) -> np.ndarray | str:
        try:
            return todo.pixels(i)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            return f"{todo.names[i]} ({reason[:50].encode('ascii', 'replace').decode()})"

    longest = sorted(todo.names, key=len)[-_MOST_SKIPPED:]  # the header comes first: room for all it may name
    room = 4096 + 2 * len(json.dumps([todo.classes, todo.origin, longest])) + 200 * len(longest)
    move = progress_to(count, f"Decoding {count:,} images of {todo.origin} to {size} px:", progress)
    with open(part, "wb") as file, ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2))) as pool:
        file.write(bytes(8 + room))
        for start in range(0, count, 256):  # no more than 256 decoded images wait in memory
            some = range(start, min(start + 256, count))
            for i, pixels in zip(some, pool.map(row, some), strict=True):
                if isinstance(pixels, str):
                    skipped.append(pixels)
                    if strict or len(skipped) > _MOST_SKIPPED:
                        many = f" and {_MOST_SKIPPED} more" * (not strict)
                        raise DataError(f"cannot be decoded in {todo.origin}: {pixels}{many}")
                else:
                    file.write(pixels)
                    digest.update(pixels)
                    kept.append(i)
            move(some.stop)
        if not kept:
            raise DataError(f"not one of {count} files of {todo.origin} can be decoded: {skipped[0]}")
        if todo.labels is not None:
            labels = todo.labels[kept].astype("<i8")
            file.write(labels)
            digest.update(labels)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header().ljust(room))
        file.flush()
        os.fsync(file.fileno())


def reopen(path: Path, source: str | None = None) -> Decoded | None:
    """A cache file, memory-mapped; None if it is missing, of another source, or damaged (with a warning).

    A file of at most 256 MB is hashed and compared with its fingerprint, any file if `source` is None.
    """
    if not path.exists():
        return None
    try:
        length = path.stat().st_size
        with open(path, "rb") as file:
            room = min(int.from_bytes(file.read(8), "little"), length)
            head = json.loads(file.read(room))
        meta, shape = head["__metadata__"], head["images"]["shape"]
        if source not in (None, meta["source"]):
            return None
        end = int(np.prod(shape))
        if length != 8 + room + end + 8 * shape[0] * ("labels" in head):
            raise ValueError("cut short")
        data = np.memmap(path, np.uint8, "c", offset=8 + room)  # copy on write: the file stays as it is
        hashed = source is None or length <= _HASHED
        if hashed and hashlib.sha256(data).hexdigest() != meta["fingerprint"]:
            raise ValueError("its pixels have changed")
        labels = torch.from_numpy(np.array(data[end:]).view("<i8")) if "labels" in head else None
        images = torch.from_numpy(data[:end].reshape(shape)).transpose(1, 2)
        return Decoded(
            images, labels, meta["fingerprint"], tuple(json.loads(meta["skipped"])), meta["origin"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}) and has to be built again", stacklevel=5)
        return None
