"""The images of the series: fetched once, decoded once, then read as one uint8 tensor.

    store = load("imagenette", "train", size=64)     # a dataset by name, downloaded where it is missing
    store = folder("photos/", size=96)               # CLASS/*.jpg, or pictures without classes
    store = from_dataset(CIFAR10("data"), size=32)   # of torchvision or Hugging Face, or a tensor

torchvision knows addresses, checksums, classes and files. One cache file a split and size keeps what was
decoded and is read as a memory map. Letters: N images, B batch, S their side.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import psutil
import torch
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import STL10, DatasetFolder, Imagenette
from torchvision.transforms.functional import to_pil_image

from ssl_lessons import shapes


class DataError(RuntimeError):
    """Images that are missing, damaged or do not fit; the message names the file and the way out."""


@dataclass(eq=False)
class ImageStore:
    """N square images of one size, and where they came from. A `torch.utils.data.DataLoader` can read it.

    images       uint8 (N, 3, S, S), RGB, 0..255: a view of memory laid out (N, S, 3, S), as views.py reads it
    labels       int64 (N,), indices into `classes`, or None
    split        its own name: "train" where "pretrain" was asked for and is the same
    fingerprint  sha256 of pixels and labels, for the run record
    skipped      files that could not be decoded, as "name (reason)"
    origin       the archive or folder; it says so when an archive is not the official file
    files        the file of each image, below the dataset's folder; () where images are no files
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: str
    fingerprint: str
    skipped: tuple[str, ...] = ()
    origin: str = ""
    files: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """S, in pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 (3, S, S), and its label; -1 without labels, as torchvision's STL10 has it."""
        return self.images[index], -1 if self.labels is None else int(self.labels[index])

    @property
    def facts(self) -> dict:
        """What a record says of the images: which they are, how many, and where they came from."""
        names = ("name", "split", "size", "fingerprint", "origin")
        return {**{name: getattr(self, name) for name in names}, "images": len(self)}

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Tensor:
        """uint8 (B, 3, S, S), a copy laid out (B, S, 3, S), on `device` (None: where the store is)."""
        rows = self.images.transpose(1, 2)  # (N, S, 3, S)
        indices = to_device(_rows(indices, len(self)), rows.device)
        pinned = rows.is_pinned()  # then the batch is too, and its transfer does not wait
        shape = (len(indices), *rows.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, device=rows.device, pin_memory=pinned)
        torch.index_select(rows, 0, indices, out=out)
        return out.to(device or rows.device, non_blocking=pinned).transpose(1, 2)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageStore:
        """A copy of the images at `indices`; its fingerprint follows from this store's and the indices."""
        indices = _rows(indices, len(self)).cpu()
        fingerprint = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        labels = None if self.labels is None else self.labels[indices]
        files = tuple(self.files[row] for row in indices.tolist()) if self.files else ()
        return replace(self, images=self.batch(indices), labels=labels, fingerprint=fingerprint, files=files)

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


def _rows(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """Row numbers, int64, of row numbers or of a mask with a bool for each of `count` images."""
    indices = torch.as_tensor(indices)
    if indices.dtype == torch.bool:
        if indices.shape != (count,):
            raise ValueError(
                f"a mask has {tuple(indices.shape)} entries for {count} images; give one for each"
            )
        return indices.nonzero()[:, 0]
    if indices.is_floating_point() and len(indices):
        raise ValueError(f"indices are {indices.dtype}; give row numbers, or a mask of {count} bools")
    return indices.to(torch.int64)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From the CPU to a GPU it goes by pinned memory, behind the work that waits there:
    a plain copy would make the host wait for all of that first."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def ram() -> int:
    """Bytes of memory of this machine."""
    return psutil.virtual_memory().total


# ---- Datasets by name, folders, other people's datasets ---------------------------------------------------


class Imagewoof(Imagenette):
    """Ten breeds of dog, by the makers of Imagenette; torchvision has only the latter."""

    _BASE = "https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2"
    _ARCHIVES = {
        "160px": (f"{_BASE}-160.tgz", "3d200a7be99704a0d7509be2a9fbfe15"),
        "320px": (f"{_BASE}-320.tgz", "0f46d997ec2264e97609196c95897a44"),
    }
    # fmt: off
    _WNID_TO_CLASS = {
        "n02086240": ("Shih-Tzu",), "n02087394": ("Rhodesian ridgeback",), "n02088364": ("beagle",),
        "n02089973": ("English foxhound",), "n02093754": ("Border terrier",),
        "n02096294": ("Australian terrier",), "n02099601": ("golden retriever",),
        "n02105641": ("Old English sheepdog",), "n02111889": ("Samoyed",), "n02115641": ("dingo",),
    }
    # fmt: on


class Entry(NamedTuple):
    """A dataset: `archives` maps the side of the stored images, in pixels, to (address, md5)."""

    title: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    licence: str
    archives: dict[int, tuple[str, str]]


def _fastai(title: str, dataset: type[Imagenette]) -> Entry:
    classes = tuple(names[0] for names in dataset._WNID_TO_CLASS.values())
    archives = {side: dataset._ARCHIVES[f"{side}px"] for side in (160, 320)}
    terms = "ImageNet's terms: non-commercial research and teaching, https://image-net.org/download"
    return Entry(title, ("train", "val"), classes, terms, archives)


# fmt: off
CATALOGUE = {
    "imagenette": _fastai("Imagenette v2: ten easily told classes of ImageNet", Imagenette),
    "imagewoof": _fastai("Imagewoof v2: ten breeds of dog from ImageNet", Imagewoof),
    "stl10": Entry(
        "STL-10: 100,000 unlabelled, 5,000 training and 8,000 test images of 96 x 96",
        ("unlabeled", "train", "test"),
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        "from ImageNet, whose terms apply; cite Coates, Ng and Lee, AISTATS 2011",
        {96: (STL10.url, STL10.tgz_md5)}),
    "shapes": Entry(
        "Shapes: ten forms and textures drawn from a seed, nothing to download",
        ("train", "test"), shapes.CLASSES, "drawn by this package and under its licence", {}),
}
# fmt: on
# What a role is called: the first of these names that a dataset or a folder has.
ROLES = {"pretrain": ("pretrain", "unlabeled", "train"), "train": ("train",), "test": ("test", "val")}
SHAPES = {"train": (4000, 0), "test": (1000, 1)}  # split: (images, seed)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_HIDDEN = (".", "__MACOSX")  # how names begin that other systems leave
_MARKER = ".ssl_lessons.json"  # in an unpacked folder: the archive it came from


def load(
    name: str, split: str = "train", size: int = 64, *, limit: int | None = None, progress=True, download=True
) -> ImageStore:
    """A split of a dataset, every image `size` x `size` (short side resized, centre cropped), fetched first.

    Args:
        name: "imagenette" | "imagewoof" | "stl10" | "shapes", or a folder, of which `split` names a subfolder
            ("train" and "pretrain" are the whole folder where it has none).
        split: the dataset's own name of a split, or the role "pretrain" | "train" | "test".
        limit: at most so many images, evenly spaced over the split.
    Raises:
        DataError: unknown name, split or size; not there, with download=False or without network.
    """
    _check(size, limit)
    root, names = Path(name).expanduser(), ROLES.get(split, (split,))
    if name not in CATALOGUE and root.is_dir():
        inner = next((one for one in names if (root / one).is_dir()), None)
        if inner is None and split not in ("train", "pretrain"):
            raise DataError(f"{root} has no folder {' or '.join(names)} for the split {split!r}")
        return folder(root / (inner or ""), size, limit=limit, progress=progress, split=split)
    known = _entry(name)
    native = next((one for one in names if one in known.splits), None)
    if native is None:
        splits = ", ".join(dict.fromkeys([*known.splits, *ROLES]))
        raise DataError(f"{name} has no split {split!r}; choose one of: {splits}")
    store = ImageStore(None, None, known.classes, name, native, "")
    if name == "shapes":
        count, seed = SHAPES[native]
        store.origin = f"shapes.draw({count}, {size}, seed={seed})"
        source = _digests(Path(shapes.__file__))[1]  # other code, other drawings

        def drawn() -> list:
            return list(zip(*shapes.draw(count, size, seed), strict=True))

        store = _cached(store, size, source, drawn, progress)
        return store.subset(_spaced(count, limit)) if limit and limit < count else store
    side = next((side for side in known.archives if side >= size), max(known.archives))
    home = fetch(name, side, progress=progress, download=download)
    store.origin, source = _origin(home)
    try:
        if name == "stl10":  # torchvision hashes its files and reads up to 2.8 GB, once
            return _cached(store, size, source, lambda: STL10(home.parent, native), progress, limit)
        wnids = (Imagenette if name == "imagenette" else Imagewoof)._WNID_TO_CLASS
        return _files(store, home / native, wnids, size, source, progress, limit)
    except (FileNotFoundError, RuntimeError) as error:  # torchvision's, of a part that is missing
        again = f"{error}: remove {home}, to have it unpacked again"
        raise (error if isinstance(error, DataError) else DataError(again)) from error


def folder(
    path: str | Path, size: int, *, limit: int | None = None, progress=True, split: str = "all"
) -> ImageStore:
    """Any folder of images. `path/CLASS/*.jpg`, at any depth: every subfolder is a class, sorted by name,
    even an empty one. Images directly in `path`: labels None, and all images below it.

    Other arguments and errors as in `load`; `split` is only a name.
    """
    _check(size, limit)
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    inside = sorted(one for one in root.iterdir() if not one.name.startswith(_HIDDEN))
    flat = any(_is_image(one.name) for one in inside)
    classes = () if flat else tuple(one.name for one in inside if one.is_dir())
    name = f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
    store = ImageStore(None, None, classes, name, split, "", origin=f"folder {root}")
    return _files(store, root, classes, size, _listing(root), progress, limit, allow_empty=True)


def from_dataset(
    dataset, size: int, *, labels=None, classes=None, name: str = "", split: str = "train", progress=True
) -> ImageStore:
    """Any dataset as an ImageStore, in a temporary file: nothing says when a dataset has changed.

    Args:
        dataset: has `len` and numbered items, each (image, label), or a dictionary with "image" and perhaps
            "label" (Hugging Face), or an image alone: so a tensor (N, 3, H, W) will do. An image is a PIL
            image, a tensor (3 or 1, H, W), uint8 or float in [0, 1], or a uint8 array (H, W, 3).
        labels: class numbers (N,), in place of the items' own.
        classes: None: the dataset's `classes`, the names of its `features["label"]`, or "0", "1", …
        name, split: for the run record.
    Raises:
        DataError: not one item is an image with a class number. Single ones are left out with a warning.
    """
    _check(size, None)
    name = name or type(dataset).__name__.lower()
    if classes is None:
        features = getattr(dataset, "features", None)  # of Hugging Face
        named = features.get("label") if isinstance(features, dict) else None
        classes = getattr(named, "names", None) or getattr(dataset, "classes", None) or ()
    classes = tuple(one if isinstance(one, str) else one[0] for one in classes)  # Imagenette's: synonyms
    store = ImageStore(None, None, classes, name, split, "", origin=f"dataset {name}")
    if labels is not None:
        labels = torch.as_tensor(labels).tolist()
    with TemporaryDirectory(ignore_cleanup_errors=True) as place:  # mapped files stay readable
        path = Path(place, "images.safetensors")
        _write(path, store, dataset, range(len(dataset)), size, "", progress, labels=labels, workers=1)
        store = _read(path, store, "")
    if not classes and store.labels is not None:
        store.classes = tuple(map(str, range(store.labels.max() + 1)))
    return store


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise DataError(f"dataset {name!r} is not known; choose one of: {', '.join(CATALOGUE)}, or a folder")
    return CATALOGUE[name]


def _check(size: int, limit: int | None) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 1024:
        raise DataError(f"size {size!r}: the side of an image is a whole number of pixels from 8 to 1024")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit!r}: take at least one image, or None for all")


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return name.lower().endswith(_SUFFIXES) and not name.startswith(_HIDDEN)


def _spaced(count: int, limit: int | None) -> list[int]:
    taken = min(limit or count, count)
    return [i * count // taken for i in range(taken)]


def _files(store, root: Path, names, size, source, progress, limit, allow_empty=False) -> ImageStore:
    """`store` with the images below the class folders `names` of `root`; "." of one that has no classes."""
    numbers = {name: number for number, name in enumerate(names)} if store.classes else {".": -1}

    def wanted(path: str) -> bool:
        inside = Path(os.path.relpath(path, root)).parts
        return _is_image(path) and not any(part.startswith(_HIDDEN) for part in inside[:-1])

    samples = DatasetFolder.make_dataset(root, numbers, is_valid_file=wanted, allow_empty=allow_empty)
    if not samples:
        kinds = " ".join(_SUFFIXES)
        raise DataError(f"no images in {root}: put them in {root}/CLASS/, or directly in it ({kinds})")
    store = replace(store, files=tuple(os.path.relpath(path, root) for path, _ in samples))
    return _cached(store, size, source, lambda: samples, progress, limit)


# ---- Decoding, and the cache ------------------------------------------------------------------------------


def square(source, size: int) -> np.ndarray:
    """A file, PIL image, tensor or array as uint8 (S, 3, S): upright, RGB, transparency on white, the largest
    central square, resized with antialiasing."""
    if isinstance(source, (str, Path)):
        with Image.open(source) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded smaller, never below twice S
            return square(image, size)
    floats = isinstance(source, Tensor) and source.is_floating_point()
    if floats and not (source.min() >= 0 and source.max() <= 1):  # NaN is refused too
        raise ValueError("float pixels are not in [0, 1]; leave normalisation out")
    image = ImageOps.exif_transpose(source if isinstance(source, Image.Image) else to_pil_image(source))
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(pixels.transpose(0, 2, 1))  # (S, S, 3) -> (S, 3, S), as views.py works


def _cached(store, size: int, source: str, build: Callable, progress: bool, limit=None) -> ImageStore:
    """`store` with its images: from a cache file, or from the dataset `build()` where that file is missing,
    damaged, or of another `source`."""
    kind = f"{store.split}-{limit}" if limit else store.split
    path = cache_root() / f"{store.name}-{kind}-{size}.safetensors"
    store = replace(store, files=tuple(store.files[row] for row in _spaced(len(store.files), limit)))
    with FileLock(path.with_name(f".{path.name}.lock")):  # one process builds it, the others wait and read
        found = _read(path, store, source)
        if found is None:
            dataset = build()
            _write(path, store, dataset, _spaced(len(dataset), limit), size, source, progress)
            found = _read(path, store, source)
    return found


def _write(path, store, dataset, rows, size: int, source: str, progress, labels=None, workers=None) -> None:
    """Decode a dataset's `rows` into a file of `images` uint8 (N, S, 3, S) and `labels` int64 (N,)."""
    digest, numbers, skipped = hashlib.sha256(), [], []

    def decoded(row: int) -> tuple[np.ndarray, int] | str:
        try:
            item = dataset[row]
            if isinstance(item, dict):
                item = item["image"], item.get("label")
            picture, label = item if isinstance(item, (tuple, list)) else (item, None)
            label = label if labels is None else labels[row]
            return square(picture, size), -1 if label is None else int(label)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            name = store.files[rows.index(row)] if store.files else f"image {row}"
            reason = f"{type(error).__name__}: {error}"[:60].replace(" (", ", ")
            known = isinstance(error, UnidentifiedImageError)  # whose message names the whole path
            return f"{name} ({'not an image' if known else reason})"  # the name ends at the last " ("

    label = f"Decoding {len(rows):,} images of {store.origin} to {size} px:"
    # Windows does not remove a file that is mapped; what is left goes with the next cleaning of the folder.
    inside = {"dir": path.parent, "prefix": f".{path.stem}-", "ignore_cleanup_errors": True}
    with TemporaryDirectory(**inside) as place:
        raw, whole = Path(place, "raw"), Path(place, "whole")
        with open(raw, "wb") as file, ThreadPoolExecutor(workers) as pool:
            for _, item in zip(_bar(rows, label, progress), pool.map(decoded, rows), strict=True):
                if isinstance(item, str):
                    skipped.append(item)
                else:
                    numbers.append(item[1])
                    digest.update(item[0])
                    file.write(item[0])
        if not numbers:
            raise DataError(f"not one of {len(rows)} images of {store.origin} can be decoded: {skipped[:1]}")
        pixels = np.memmap(raw, np.uint8, "c", shape=(len(numbers), size, 3, size))  # not in memory
        tensors = {"images": torch.from_numpy(pixels)}
        if min(numbers) >= 0:  # -1 marks an image without a label, as in torchvision's STL10
            tensors["labels"] = torch.tensor(numbers)
            digest.update(tensors["labels"].numpy())
        about = {"source": source, "origin": store.origin, "fingerprint": digest.hexdigest()}
        about |= {"classes": json.dumps(store.classes), "skipped": json.dumps(skipped)}
        save_file(tensors, whole, about)
        os.replace(whole, path)


def _read(path: Path, store: ImageStore, source: str) -> ImageStore | None:
    """`store` with the images of a cache file, mapped copy-on-write; None if the file is missing, damaged or
    of another source."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about, names = file.metadata(), file.keys()
            if about["source"] != source:
                return None
            images = file.get_tensor("images").transpose(1, 2)  # (N, 3, S, S)
            labels = file.get_tensor("labels") if "labels" in names else None
            skipped = tuple(json.loads(about["skipped"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}) and is built again", stacklevel=5)
        return None
    if skipped:
        few = ", ".join(skipped[:5]) + ", …" * (len(skipped) > 5)
        part = f"{len(skipped)} of {len(skipped) + len(images)} images"
        warnings.warn(f"{part} of {store.origin} cannot be decoded and are left out: {few}", stacklevel=5)
    left_out = {one.rpartition(" (")[0] for one in skipped}
    files = tuple(one for one in store.files if one not in left_out)
    found = {"labels": labels, "fingerprint": about["fingerprint"], "skipped": skipped, "files": files}
    return replace(store, images=images, **found)


def _bar(steps: Sequence, label: str, show: bool):
    """`steps`, under a progress bar where one is to be shown."""
    if not show:
        return steps
    from fastprogress import progress_bar  # here, because it loads a web framework

    print(label)
    return progress_bar(steps, leave=False)


# ---- Where files lie, and how they come there -------------------------------------------------------------


def data_root() -> Path:
    """The folder of downloads: $SSL_LESSONS_DATA; else `data/` of the checkout (a folder with notebooks/ and
    ssl_lessons/) around the working directory, then around this file; else ~/.cache/ssl-lessons."""
    named = os.environ.get("SSL_LESSONS_DATA")
    if named:
        root = Path(named).expanduser().absolute()
        if root.is_file():
            raise DataError(f"SSL_LESSONS_DATA is {named!r}, which is a file: let it name a folder")
        return root
    for place in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (place / "notebooks").is_dir() and (place / "ssl_lessons").is_dir():
            return place / "data"
    return Path("~/.cache/ssl-lessons").expanduser()


def cache_root() -> Path:
    """The folder of decoded images, made if missing: data_root()/cache; where that cannot be written
    (a Kaggle input, a shared disk), ($XDG_CACHE_HOME or ~/.cache)/ssl-lessons."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl-lessons"
    for place in (data_root() / "cache", user):
        if _writable(place):
            return place
    raise DataError(f"neither {data_root()} nor {user} can be written: let SSL_LESSONS_DATA name a folder")


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK)
    except OSError:
        return False


def find(name: str) -> Path | None:
    """A file or folder below the data root or the cache root, or None."""
    return next((place / name for place in (data_root(), cache_root()) if (place / name).exists()), None)


def fetch(name: str, size: int = 160, *, progress: bool = True, download: bool = True) -> Path:
    """The unpacked folder of a dataset: found, or unpacked from its archive, or downloaded first.

    `size` picks the 160 or 320 px archive and means nothing where there is only one. Raises DataError for an
    unknown size, a missing network (naming the file and its place), a wrong checksum, an unsafe archive.
    """
    archives = _entry(name).archives
    if not archives:
        return data_root()  # Shapes: nothing to fetch
    size = size if len(archives) > 1 else min(archives)
    if size not in archives:
        raise DataError(f"{name} has no {size} px archive; choose one of: {', '.join(map(str, archives))}")
    url, md5 = archives[size]
    file = url.rpartition("/")[2]
    inside = file.partition(".")[0]  # the one folder in the archive
    home = data_root() if _writable(data_root()) else cache_root()
    with FileLock(home / f".{inside}.lock"):  # one process fetches, the others wait
        if find(inside) is None:
            packed = find(file) or home / file
            if not packed.exists():
                _download(url, md5, packed, progress, download)
            _unpack(packed, md5, home / inside, progress)
    return find(inside)


def _download(url: str, md5: str, packed: Path, progress: bool, allowed: bool) -> None:
    """Into a part file, going on from what an earlier call has left (neither torchvision nor pooch does), and
    renamed once its md5 is right."""
    part = packed.with_name(f".{packed.name}.part")
    try:
        if not allowed:
            raise OSError("download=False")
        if not part.exists() or _digests(part)[0] != md5:
            have = part.stat().st_size if part.exists() else 0
            asked = {"User-Agent": "ssl-lessons", "Range": f"bytes={have}-"}
            with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=30) as answer:
                length = answer.length or 0
                label = f"Downloading {packed.name}, {length / 1e6:,.0f} MB:"
                with open(part, "ab" if answer.status == 206 else "wb") as file:  # 200: it sends all of it
                    for _ in _bar(range(0, length, 1 << 20), label, progress):
                        file.write(answer.read(1 << 20))
                    if answer.length is None:  # a proxy that does not say how much will come
                        shutil.copyfileobj(answer, file)
                if answer.length:
                    raise OSError(f"the connection ended {answer.length:,} bytes early")
        arrived = _digests(part)[0]
        if arrived != md5:
            wrong = part.replace(f"{packed}.wrong")
            raise OSError(f"it arrived with md5 {arrived} instead of {md5}, and was set aside as {wrong}")
        part.replace(packed)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"could not download {packed.name} ({error}). The next call goes on from what is there. Or get "
            f"{url} elsewhere and put it at {data_root() / packed.name}, or let SSL_LESSONS_DATA name its "
            "folder: a file with another md5 is used, and the origin of the images says so. The dataset "
            "'shapes' needs no download."
        ) from error


def _unpack(packed: Path, md5: str, home: Path, progress: bool) -> None:
    """An archive's one folder, renamed to `home` when it is whole. tarfile's filter (3.10.12, 3.11.4) refuses
    what would lead outside, CVE-2007-4559; torchvision's own extraction has none before Python 3.14."""
    if progress:
        print(f"Unpacking {packed.name}")
    found, sha256 = _digests(packed)
    note = {"archive": packed.name, "sha256": sha256, "official": found == md5}
    with TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as place:
        try:
            with tarfile.open(packed) as tar:
                tar.extractall(place, filter="data")
            Path(place, home.name, _MARKER).write_text(json.dumps(note))
        except (tarfile.TarError, EOFError, zlib.error, OSError, TypeError) as error:
            reason = str(error).partition("\n")[0]  # tarfile lists every format it tried
            raise DataError(f"could not unpack {packed} ({reason}); if it is damaged, remove it") from error
        Path(place, home.name).replace(home)


def _digests(path: Path) -> tuple[str, str]:
    """(md5, sha256) of a file."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _origin(home: Path) -> tuple[str, str]:
    """Where an unpacked folder came from, in words, and a mark that changes when its files do."""
    try:
        note = json.loads((home / _MARKER).read_text())
        kind = "the official file" if note["official"] else "not the official file"
        return f"{note['archive']} (sha256 {note['sha256'][:16]}), {kind}", note["sha256"]
    except (OSError, ValueError, KeyError):
        return f"{home.name}, unpacked by hand and not compared with the official archive", _listing(home)


def _listing(root: Path) -> str:
    """A mark of what lies below a folder: sha256 over names, lengths and times."""
    mark = hashlib.sha256()
    for place, inner, files in os.walk(root):
        inner.sort()
        mark.update(f"{os.path.relpath(place, root)}\n".encode())  # a class folder may be empty
        for name in sorted(files):
            state = os.stat(os.path.join(place, name))
            mark.update(f"{name}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return mark.hexdigest()
