"""Images as the lessons use them: decoded once, then read as one uint8 tensor.

`load("imagenette", "train", size=64)` fetches what is missing (archives.py), decodes every file on two
threads into one cache file (storage.py), and returns an `ImageStore`; the next call only opens that file.
Letters: N images, B batch, H and W stored height and width (equal), S the same side.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_lessons import shapes
from ssl_lessons.archives import CATALOGUE, STL_SIDE, check, digests, entry, fetch, listing, origin
from ssl_lessons.storage import (
    DataError,
    Decoded,
    Plan,
    cache_root,
    cached,
    data_root,
    decode,
    find,
    ram,
    reopen,
    rows,
    square,
)

__all__ = [
    "CATALOGUE",
    "DataError",
    "ImageStore",
    "cache_root",
    "data_root",
    "fetch",
    "folder",
    "load",
    "verify",
]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SHAPES = {"train": (4000, 0), "test": (1000, 1)}  # split: (images, seed)


@dataclass(eq=False)
class ImageStore:
    """N square images of one size, and where they came from.

    images       uint8 (N, 3, H, W), RGB, 0..255: a view of memory laid out (N, H, 3, W), which views.py reads
                 without a copy (STL-10 at 96 px is a view of its own file instead)
    labels       int64 (N,), indices into `classes`, or None
    fingerprint  sha256 of pixels and labels, for the run record
    skipped      files that could not be decoded, as "name (reason)"
    origin       the archive or folder; it says so when an archive is not the official file
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: str
    fingerprint: str
    skipped: tuple[str, ...] = ()
    origin: str = ""

    @property
    def size(self) -> int:
        """H, in pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Tensor:
        """uint8 (B, 3, H, W), a copy laid out (B, H, 3, W), on `device` (None: where the store is)."""
        rows = self.images.transpose(1, 2)  # (N, H, 3, W)
        indices = sent(torch.as_tensor(indices, dtype=torch.int64), rows.device)
        pinned = rows.is_pinned()  # then the batch is too, and its transfer does not wait
        out = torch.empty(
            len(indices), *rows.shape[1:], dtype=torch.uint8, device=rows.device, pin_memory=pinned
        )
        torch.index_select(rows, 0, indices, out=out)
        return out.to(device or rows.device, non_blocking=pinned).transpose(1, 2)

    def to(self, device: torch.device | str, budget: int | None = None) -> ImageStore:
        """The same images as near to a GPU as they fit: on it if they take at most `budget` bytes (None: half
        of its free memory), else pinned if they take at most a quarter of the RAM, else as they are. Labels
        stay on the CPU; for a CPU the store itself is returned."""
        device, rows = torch.device(device), self.images.transpose(1, 2)
        if device.type == "cpu":
            return self
        if budget is None:
            budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30
        if rows.numel() <= budget:
            rows = rows.to(device).contiguous()
        elif device.type == "cuda" and rows.numel() <= ram() // 4:
            rows = rows.contiguous().pin_memory()
        return replace(self, images=rows.transpose(1, 2))

    def subset(self, indices: Sequence[int] | Tensor) -> ImageStore:
        """A copy of the images at `indices`; its fingerprint follows from this store's and the indices."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        mark = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.batch(indices), labels=labels, fingerprint=mark)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From the CPU to a GPU it goes by pinned memory, behind the work that waits there:
    a plain copy would make the host wait for all of that first."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


# ---- Datasets -------------------------------------------------------------------------------------------


def load(
    name: str,
    split: str = "train",
    size: int = 64,
    *,
    fold: int | None = None,
    strict: bool = False,
    progress: bool = True,
    download: bool = True,
    limit: int | None = None,
) -> ImageStore:
    """A split of a dataset, every image `size` x `size` (short side resized, centre cropped), fetched first.

    name    "imagenette" | "imagewoof" | "stl10" | "shapes", or a folder, of which `split` names a subfolder
            ("train" and "pretrain" are the whole folder where it has none)
    split   a native name, or the role "pretrain" | "train" | "test"
    fold    0..9: one of STL-10's ten training folds of 1,000 images
    strict  refuse a file that cannot be decoded, instead of leaving it out with a warning
    limit   at most so many images, evenly spaced over the split

    Raises DataError: unknown name, split, size or fold; missing files with download=False or without network;
    no images; a full disk.
    """
    root = Path(name).expanduser()
    if name not in CATALOGUE and root.is_dir():
        tried = {"pretrain": ("pretrain", "unlabeled", "train"), "test": ("test", "val")}.get(split, (split,))
        inner = next((root / one for one in tried if (root / one).is_dir()), None)
        if inner is None and split not in ("train", "pretrain"):
            raise DataError(f"{root} has no folder {' or '.join(tried)} for the split {split!r}")
        return folder(inner or root, size, strict=strict, progress=progress, limit=limit, split=split)
    known = entry(name)
    native = known.roles.get(split, split)
    if native not in known.splits:
        names = dict.fromkeys([*known.splits, "pretrain", "train", "test"])
        raise DataError(f"{name} has no split {split!r}; choose one of: {', '.join(names)}")
    if fold is not None and (name != "stl10" or native != "train" or fold not in range(10)):
        raise DataError(f"fold {fold!r} of {name} {native}: only stl10's train split has folds, 0 to 9")
    _check(size, limit)
    if name == "shapes":
        return _shapes(native, size, limit, strict, progress)
    here = [side for side, archive in known.archives.items() if find(archive.folder) or find(archive.file)]
    enough = [side for side in known.archives if side >= size] or [max(known.archives)]
    side = next((side for side in enough if side in here), enough[0])  # a larger one that is here will do
    home = fetch(name, side, progress=progress, download=download)
    if name == "stl10":
        return _stl10(home, native, size, fold, limit, strict, progress)
    if missing := [wnid for wnid in known.wnids if not (home / native / wnid).is_dir()]:
        raise DataError(
            f"{home / native} lacks {', '.join(missing)}: remove {home}, to have it unpacked again"
        )
    came_from, mark = origin(home)
    options = (size, mark, came_from, limit, strict, progress)
    return _files(name, native, known.classes, home / native, known.wnids, *options)


def folder(
    path: str | Path,
    size: int,
    *,
    strict: bool = False,
    progress: bool = True,
    limit: int | None = None,
    split: str = "all",
) -> ImageStore:
    """Any folder of images. `path/CLASS/*.jpg`, at any depth: every subfolder is a class, sorted by name.
    Images directly in `path`: labels None, and all images below it.

    A class folder without images keeps its number, with a warning (refused if strict). Other arguments and
    errors as in `load`; `split` is only a name.
    """
    _check(size, limit)
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    inside = sorted(one for one in root.iterdir() if not _hidden(one.name))
    flat = any(_is_image(one.name) for one in inside)
    classes = () if flat else tuple(one.name for one in inside if one.is_dir())
    empty = [one for one in classes if next(_below(root / one), None) is None]
    if empty and len(empty) < len(classes):
        words = f"no images in {len(empty)} class folder(s) of {root}: {', '.join(empty)}"
        if strict:
            raise DataError(f"{words}. Fill or remove them, or keep them empty with strict=False.")
        warnings.warn(words, stacklevel=2)
    name = f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
    options = (size, listing(root), f"folder {root}", limit, strict, progress)
    return _files(name, split, classes, root, classes, *options)


def _check(size: int, limit: int | None) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 1024:
        raise DataError(f"size {size!r}: the side of an image is a whole number of pixels from 8 to 1024")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit!r}: take at least one image, or None for all")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not _hidden(name)


def _below(root: Path) -> Iterator[str]:
    for place, inner, files in os.walk(root):
        inner[:] = sorted(one for one in inner if not _hidden(one))
        yield from (os.path.join(place, one) for one in sorted(files) if _is_image(one))


def _spaced(count: int, limit: int | None) -> list[int]:
    return [i * count // limit for i in range(limit)] if limit and limit < count else list(range(count))


def _store(name: str, split: str, classes: tuple[str, ...], found: Decoded) -> ImageStore:
    return ImageStore(
        found.images, found.labels, classes, name, split, found.fingerprint, found.skipped, found.origin
    )


def _files(
    name, split, classes, root, folders, size, source, came_from, limit, strict, progress
) -> ImageStore:
    """The files below `root`, of which the subfolders `folders` are the classes (none: no labels)."""

    def plan() -> Plan:
        found = [(one, label) for label, each in enumerate(folders) for one in _below(root / each)]
        found = found if folders else [(one, 0) for one in _below(root)]
        if not found:
            kinds = " ".join(_SUFFIXES)
            raise DataError(f"no images in {root}: put them in {root}/CLASS/, or directly in it ({kinds})")
        found = [found[i] for i in _spaced(len(found), limit)]
        labels = np.array([label for _, label in found], np.int64) if folders else None
        names = [os.path.relpath(one, root) for one, _ in found]
        return Plan(came_from, names, classes, labels, lambda i: decode(found[i][0], size))

    key = f"{name}-{split}" + f"-{limit}" * bool(limit)
    return _store(name, split, classes, cached(key, size, source, plan, strict, progress))


def _shapes(split: str, size: int, limit: int | None, strict: bool, progress: bool) -> ImageStore:
    count, seed = _SHAPES[split]
    came_from = f"shapes.draw({count}, {size}, seed={seed})"

    def plan() -> Plan:
        pixels, labels = shapes.draw(count, size, seed)
        names = [str(i) for i in range(count)]
        return Plan(came_from, names, shapes.CLASSES, labels, lambda i: rows(pixels[i]))

    source = digests(Path(shapes.__file__))[1]  # other code, other drawings
    found = cached(f"shapes-{split}", size, source, plan, strict, progress)
    store = _store("shapes", split, shapes.CLASSES, found)
    return store.subset(_spaced(count, limit)) if limit and limit < count else store


def _stl10(home, split, size, fold, limit, strict, progress) -> ImageStore:
    """STL-10's own files: uint8 (3, column, row) an image, labels from 1. At 96 px the file is the store."""
    file, note = home / f"{split}_X.bin", cache_root() / f"stl10-{split}-{STL_SIDE}.json"
    try:
        state = file.stat()
        if state.st_size == 0 or state.st_size % (3 * STL_SIDE**2):
            raise DataError(f"{file} is damaged: {state.st_size:,} bytes are not a number of whole images")
        pixels = np.memmap(file, np.uint8, "c").reshape(-1, 3, STL_SIDE, STL_SIDE)
        labels = None
        if split != "unlabeled":
            labels = np.fromfile(home / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
            if len(labels) != len(pixels) or not 0 <= labels.min() <= labels.max() <= 9:
                raise DataError(f"{split}_y.bin in {home} does not hold {len(pixels)} labels from 1 to 10")
        lines = (home / "fold_indices.txt").read_text().splitlines() if fold is not None else []
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: remove {home}, to have it unpacked again") from error
    chosen = np.arange(len(pixels)) if fold is None else np.array(lines[fold].split(), np.int64)
    chosen = chosen[_spaced(len(chosen), limit)]
    source, came_from = f"{state.st_size}:{state.st_mtime_ns}", origin(home)[0]
    classes = CATALOGUE["stl10"].classes
    if size != STL_SIDE:
        names = [f"{file.name}[{i}]" for i in chosen]
        some = None if labels is None else labels[chosen]

        def pixel_rows(i: int) -> np.ndarray:
            return square(Image.fromarray(pixels[chosen[i]].transpose(2, 1, 0)), size)

        plan = Plan(came_from, names, classes, some, pixel_rows)
        key = f"stl10-{split}" + f"-fold{fold}" * (fold is not None) + f"-{limit}" * bool(limit)
        return _store("stl10", split, classes, cached(key, size, source, lambda: plan, strict, progress))
    known = json.loads(note.read_text()) if note.exists() else {}
    if known.get("source") != source:  # hashing 2.7 GB takes seconds, so once
        known = {"source": source, "fingerprint": digests(file)[1]}
        note.write_text(json.dumps(known))
    labels = None if labels is None else torch.from_numpy(labels)
    images = torch.from_numpy(pixels).transpose(2, 3)  # (N, 3, column, row) -> (N, 3, H, W)
    store = ImageStore(images, labels, classes, "stl10", split, known["fingerprint"], (), came_from)
    return store if len(chosen) == len(pixels) else store.subset(chosen)


def verify(name: str | None = None) -> list[tuple[str, str, str]]:
    """(dataset, file, status) for each archive, unpacked folder and cache file that is here, read in full. A
    status starts with "ok" or "damaged". All datasets if `name` is None."""
    found = []
    for each in CATALOGUE if name is None else [name]:
        for archive in entry(each).archives.values():
            if packed := find(archive.file):
                found.append((each, str(packed), check(archive, packed)))
            if home := find(archive.folder):
                found.append((each, str(home), f"ok: from {origin(home)[0]}"))
        for path in sorted(cache_root().glob(f"{each}-*.safetensors")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole = reopen(path)
            found.append(
                (each, str(path), "ok: whole" if whole else "damaged: it will be built again when loaded")
            )
    return found
