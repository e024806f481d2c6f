"""The images of the series: fetched once, decoded once, then read as one uint8 tensor.

    store = load("imagenette", "train", size=64)     # a dataset by name, downloaded where it is missing
    store = folder("photos/", size=96)               # CLASS/*.jpg, or pictures without classes
    store = from_dataset(CIFAR10("data"), size=32)   # of torchvision or Hugging Face, or a tensor

One memory-mapped file a split and size keeps what was decoded. N images, B in a batch, S their side.
"""

from __future__ import annotations

import hashlib
import io
import json
import operator
import os
import re
import shutil
import tarfile
import threading
import unicodedata
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import psutil
import torch
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import StackDataset
from torchvision.datasets import STL10, Imagenette
from torchvision.datasets.utils import calculate_md5, check_integrity
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from ssl_lessons import shapes
from ssl_lessons.parameters import folder as home_folder
from ssl_lessons.parameters import printable


class DataError(ValueError):
    """Images that are missing, damaged or do not fit; the message names the file and the way out."""


@dataclass(eq=False)
class ImageStore:
    """N square images of one size, and where they came from. A `torch.utils.data.DataLoader` can read it.

    images       uint8 (N, 3, S, S), RGB, 0..255: a view of memory laid out (N, S, 3, S), as views.py reads it
    labels       int64 (N,), indices into `classes` (names, each another, in Unicode's NFC), or None
    split        its own name: "train" where "pretrain" was asked for and is the same
    fingerprint  sha256 of pixels and labels, for the run record
    skipped      files that were left out, as "name (reason)"
    origin       the archive or folder; it says so when an archive is not the official file
    files        the file of each image, below the dataset's folder; () where images are no files
    place        of a folder: the path that was asked for, absolute, with its links as they are; else ""
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
    place: str = ""

    def __post_init__(self):
        self.classes = names = tuple(unicodedata.normalize("NFC", str(name)) for name in self.classes)
        if len(set(names)) < len(names):  # labels are matched by name
            twice = max(names, key=names.count)
            raise DataError(f"{self.origin or self.name} has two classes called {twice:.200}; rename one")
        labels, last = self.labels, len(self.classes) - 1
        if labels is None:
            return
        outside = labels[(labels < 0) | (labels > last)].tolist()
        if outside or labels.dtype != torch.int64 or labels.shape != (len(self.images),):
            kind = f"{labels.dtype} {tuple(labels.shape)}, out of range: {outside[:3]}"
            whose = f"labels of {self.name} ({self.split})"
            raise DataError(f"{whose} are {kind}; give each image an int64 from 0 to {last}, or all none")

    @property
    def size(self) -> int:
        """S, in pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 (3, S, S), and its label; -1 without labels, as torchvision's STL10 has it."""
        if isinstance(index, bool):
            raise TypeError(f"an index is {index}; give the number of a row")
        index = operator.index(index)
        return self.images[index], -1 if self.labels is None else int(self.labels[index])

    @property
    def facts(self) -> dict:
        """What a record says of the images: which they are, how many, and where they came from."""
        facts = {name: getattr(self, name) for name in ("name", "split", "size", "fingerprint", "origin")}
        return facts | {"images": len(self)} | ({"place": self.place} if self.place else {})

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Tensor:
        """uint8 (B, 3, S, S), a copy laid out (B, S, 3, S), on `device` (None: where the store is)."""
        rows = self.images.transpose(1, 2)  # (N, S, 3, S)
        indices = to_device(_rows(indices, len(self)), rows.device)
        pinned = rows.is_pinned()  # then the batch is too, and its transfer does not wait
        out = rows.new_empty((len(indices), *rows.shape[1:]), pin_memory=pinned)
        torch.index_select(rows, 0, indices, out=out)
        return out.to(device or rows.device, non_blocking=pinned).transpose(1, 2)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageStore:
        """A copy of the images at `indices`; its fingerprint follows from this store's and the indices."""
        indices = _rows(indices, len(self)).cpu()
        fingerprint = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        labels = None if self.labels is None else self.labels[indices]
        files = tuple(self.files[row] for row in indices.tolist()) if self.files else ()
        return replace(self, images=self.batch(indices), labels=labels, fingerprint=fingerprint, files=files)

    def copies(self, other: ImageStore) -> Tensor:
        """Rows, int64, of the images that `other` holds too, to the bit: images that have leaked."""
        theirs = {hash(image.numpy().tobytes()) for image in other.images.cpu()}
        leaked = [hash(image.numpy().tobytes()) in theirs for image in self.images.cpu()]
        return torch.tensor(leaked, dtype=torch.bool).nonzero()[:, 0]

    def to(self, device: torch.device | str, budget: int | None = None) -> ImageStore:
        """The same images on a GPU, if they take at most `budget` bytes (None: half of its free memory), else
        pinned, if they take at most a quarter of the RAM. Labels stay on the CPU."""
        device, rows = torch.device(device), self.images.transpose(1, 2)
        if device.type == "cpu":
            return self
        if budget is None:
            budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30
        if rows.numel() <= budget:
            rows = rows.to(device).contiguous()
        elif device.type == "cuda" and rows.numel() <= psutil.virtual_memory().total // 4:
            rows = rows.contiguous().pin_memory()
        return replace(self, images=rows.transpose(1, 2))


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor has numbers without a fraction, and not truth values."""
    return torch.can_cast(tensor.dtype, torch.int64) and tensor.dtype != torch.bool


def _rows(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """Row numbers, int64, of row numbers or of a mask with a bool for each of `count` images."""
    with suppress(TypeError, ValueError):  # of a slice, a set, text
        indices = indices if isinstance(indices, Tensor) else torch.as_tensor(np.array(indices))
    listed = isinstance(indices, Tensor) and indices.ndim == 1
    if listed and indices.dtype == torch.bool and len(indices) == count:
        return indices.nonzero()[:, 0]
    if not listed or len(indices) and not is_whole(indices):
        raise ValueError(f"indices are {indices!r:.200}; give a list of rows, or {count} bools")
    indices = indices.to(torch.int64)  # numbers without a sign have no minimum
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        raise IndexError(f"indices run from {indices.min()} to {indices.max()}; there are {count} images")
    return indices


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From the CPU to a GPU it goes by pinned memory: a plain copy would make the host
    wait for all work that the GPU still has."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # expanded, it cannot be pinned


# ---- Datasets by name, folders, other people's datasets ---------------------------------------------------


class Entry(NamedTuple):
    """A dataset: `archives` maps the side of the stored images, in pixels, to (address, md5)."""

    title: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    archives: dict[int, tuple[str, str]]


# fmt: off
WNIDS = {  # the folder of each class, and its name; torchvision has no Imagewoof
    "imagenette": {wnid: names[0] for wnid, names in Imagenette._WNID_TO_CLASS.items()},
    "imagewoof": {
        "n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "beagle",
        "n02089973": "English foxhound", "n02093754": "Border terrier", "n02096294": "Australian terrier",
        "n02099601": "golden retriever", "n02105641": "Old English sheepdog", "n02111889": "Samoyed",
        "n02115641": "dingo"},
}
_WOOF = "https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2"
CATALOGUE = {
    "imagenette": Entry(
        "Imagenette v2: ten easily told classes of ImageNet", ("train", "val"),
        tuple(WNIDS["imagenette"].values()),
        {160: Imagenette._ARCHIVES["160px"], 320: Imagenette._ARCHIVES["320px"]}),
    "imagewoof": Entry(
        "Imagewoof v2: ten breeds of dog from ImageNet", ("train", "val"), tuple(WNIDS["imagewoof"].values()),
        {160: (f"{_WOOF}-160.tgz", "3d200a7be99704a0d7509be2a9fbfe15"),
         320: (f"{_WOOF}-320.tgz", "0f46d997ec2264e97609196c95897a44")}),
    "stl10": Entry(
        "STL-10: 100,000 unlabelled, 5,000 training and 8,000 test images of 96 x 96",
        ("unlabeled", "train", "test"),
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        {96: (STL10.url, STL10.tgz_md5)}),
    "shapes": Entry(
        "Shapes: ten forms and textures drawn from a seed, nothing to download",
        ("train", "test"), shapes.CLASSES, {}),
}
# What a role is called: the first of these names that a dataset has, or a folder, in any case.
ROLES = {
    "pretrain": ("pretrain", "unlabeled", "unlabelled", "train", "training"),
    "train": ("train", "training"),
    "test": ("test", "val", "testing", "valid", "validation", "eval", "dev"),
    "val": ("val", "valid", "validation"),
}
# fmt: on
SPLITS = frozenset().union(*ROLES.values())  # what the folder of a split is called, in any case
SHAPES = {"train": (4000, 0), "test": (1000, 1)}  # split: (images, seed)
_MARKER = ".ssl_lessons.json"  # in an unpacked folder: the archive it came from


def load(
    name: str, split: str = "train", size: int = 64, *, limit: int | None = None, progress=True, download=True
) -> ImageStore:
    """A split of a dataset, every image `size` x `size` (short side resized, centre cropped), fetched first.

    name: "imagenette" | "imagewoof" | "stl10" | "shapes", or a folder, of which `split` names a subfolder in
        any case, or train2017 ("train" and "pretrain" are the whole folder where it has no splits).
    split: the dataset's own name of a split, or the role "pretrain" | "train" | "test".
    limit: at most so many images, evenly spaced over the split.
    DataError: unknown name, split or size; not there, with download=False or without network."""
    _check(size, limit)
    if not isinstance(name, (str, Path)) or not isinstance(split, str):
        raise DataError(f"dataset {name!r:.99}, split {split!r:.99}: give both as text, 'shapes' and 'train'")
    if name not in CATALOGUE and os.path.isdir(os.path.expanduser(name)):
        store = folder(_part(name, split), size, limit=limit, progress=progress, split=split)
        return replace(store, place=str(Path(os.path.expanduser(name)).absolute()))
    entry = _entry(name)
    native = next((own for own in ROLES.get(split, (split,)) if own in entry.splits), None)
    if native is None:
        raise DataError(f"{name} has no split {split!r}; choose one of: {', '.join(entry.splits)}, or a role")
    store = ImageStore(None, None, entry.classes, name, native, "")
    if name == "shapes":
        count, seed = SHAPES[native]
        store.origin = f"shapes.draw({count}, {size}, seed={seed})"
        source = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()  # other code, other drawings
        store = _cached(store, size, source, lambda: StackDataset(*shapes.draw(count, size, seed)), progress)
        return store.subset(_spaced(count, limit)) if limit and limit < count else store
    home = fetch(name, size, progress=progress, download=download)
    store.origin, archive = _origin(home)
    again = f"remove {home}, to have it unpacked again, and the archive too, if that lacks them"
    if name == "stl10":
        source = _mark(home, [(str(path), 0) for path in sorted(home.glob("*.bin"))], archive)
        try:  # torchvision hashes its files and reads up to 2.8 GB, once
            return _cached(store, size, source, lambda: STL10(home.parent, native), progress, limit)
        except (FileNotFoundError, RuntimeError) as error:
            raise DataError(f"{error}: {again}") from error
    root = home / native
    folders = {wnid: _pictures(root, wnid, []) for wnid in WNIDS[name]}
    missing = ", ".join(wnid for wnid in folders if not folders[wnid])
    if missing:
        raise DataError(f"{root} has no images of {missing}: {again}")
    samples = [(path, label) for label, paths in enumerate(folders.values()) for path in paths]
    store.files = tuple(os.path.relpath(path, root) for path, _ in samples)
    return _cached(store, size, _mark(home, samples, archive), lambda: samples, progress, limit)


def folder(
    path: str | Path, size: int, *, limit: int | None = None, progress=True, split: str = "all"
) -> ImageStore:
    """Any folder of images. `path/CLASS/*.jpg`, at any depth: every subfolder is a class, even an empty one.
    Where most images lie directly in `path`: labels None, and all images below it. Links are followed; what
    is passed over is told and kept in `skipped`. `split` is only a name, the rest as in `load`. DataError for
    splits, at any depth."""
    _check(size, limit)
    given = Path(os.path.expanduser(path)).absolute()
    root = Path(os.path.realpath(given))
    shown, skipped = printable(str(root)), []
    if not root.is_dir():
        raise DataError(f"{shown} is not a folder")
    direct = _pictures(root, "", skipped) or []
    folders = {name: _pictures(root, name, skipped) for name in _folders(root)}
    folders = {name: paths for name, paths in folders.items() if paths is not None}
    samples = [(path, label) for label, paths in enumerate(folders.values()) for path in paths]
    origin, classes = f"folder {shown}", tuple(map(printable, folders))
    if len(direct) > len(samples):
        nested = [path for path, _ in samples]
        if nested:
            counts = f"{len(direct)} lie directly in it, {len(nested)} in folders"
            warnings.warn(f"the images of {origin} get no labels: {counts}", stacklevel=2)
        samples, classes = [(path, -1) for path in sorted(direct + nested, key=os.path.split)], ()
    else:  # a stray cover.png beside class folders
        skipped += [f"{printable(os.path.basename(one))} (beside the classes' folders)" for one in direct]
        skipped += [f"{printable(name)} (a class without images)" for name in folders if not folders[name]]
    if not samples:
        few = "; ".join(skipped[:5])
        raise DataError(f"no images in {shown}: put them in it or in its CLASS/ (.names are hidden). {few}")
    name = printable(root.name).replace("\\", "_")[:40]
    name = f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    files = tuple(os.path.relpath(path, root) for path, _ in samples)
    store = ImageStore(None, None, classes, name, split, "", tuple(skipped), origin, files, str(given))
    return _cached(store, size, _mark(root, samples, classes), lambda: samples, progress, limit)


def from_dataset(
    dataset, size: int, *, labels=None, classes=None, name: str = "", split: str = "train", progress=True
) -> ImageStore:
    """Any dataset as an ImageStore, in a temporary file: nothing says when a dataset has changed.

    dataset: has `len` and numbered items: (image, label), a dictionary with "image" and perhaps "label", as
        Hugging Face's, or an image alone: PIL's, a tensor (3 or 1, H, W) or an array (H, W, 3), uint8 or
        float in [0, 1]. So a tensor (N, 3, H, W) will do.
    labels: class numbers (N,), in place of the items' own.
    classes: their names. None: of its `features["label"]`, the dataset's `classes`, or "0", "1", …
    DataError: not one item is an image (single ones are left out with a warning), or a label no number."""
    _check(size)
    name = name or type(dataset).__name__.lower()
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"dataset {name} has no length or no numbered items; give a list of its items")
    count = len(dataset)
    if classes is None:
        features = getattr(dataset, "features", None)  # of Hugging Face
        named = features.get("label") if isinstance(features, dict) else None
        found = getattr(named, "names", None), getattr(dataset, "classes", None), ()
        classes = next(names for names in found if names is not None)
    for what, given in (("classes", classes), ("labels", labels)):
        listed = hasattr(given, "__iter__") and getattr(given, "ndim", 1)  # an array of one number is none
        if given is not None and (not listed or isinstance(given, (str, bytes, Mapping, set, frozenset))):
            raise DataError(f"{what} of dataset {name} are {given!r:.200}; give a list of them, in order")
    classes = [one[0] if isinstance(one, (tuple, list)) and one else one for one in classes]  # of synonyms
    if labels is not None:
        labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        if len(labels) != count:
            raise DataError(f"dataset {name} has {count} items and {len(labels)} labels; give one for each")

    def item(row: int) -> tuple:
        item = dataset[row]
        if isinstance(item, dict):
            if "image" not in item:
                there = ", ".join(map(str, item))
                raise DataError(f"it has {there}; call the picture 'image', its class 'label'")
            item = item["image"], item.get("label")
        picture, label = item if isinstance(item, (tuple, list)) else (item, None)
        return picture, label if labels is None else labels[row]

    store = ImageStore(None, None, classes, name, split, "", origin=f"dataset {name}")
    with TemporaryDirectory(ignore_cleanup_errors=True) as place:  # mapped files stay readable
        path = Path(place, "images.safetensors")
        _write(path, store, item, range(count), size, "", progress, workers=1)
        return _read(path, store, "")


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise DataError(f"dataset {name!r} is not known; choose one of: {', '.join(CATALOGUE)}, or a folder")
    return CATALOGUE[name]


def _check(size: int, limit: int | None = None) -> None:
    if not isinstance(size, Integral) or not 8 <= size <= 1024:
        raise DataError(f"size {size!r}: the side of an image is a whole number of pixels from 8 to 1024")
    if limit is not None and (not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"limit {limit!r}: take at least one image, a whole number, or None for all")


def _spaced(count: int, limit: int | None) -> list[int]:
    taken = min(limit or count, count)
    return [i * count // taken for i in range(taken)]


# ---- Folders: what is read, and what a cache of it watches -------------------------------------------------

_HIDDEN = (".", "__MACOSX")  # how names begin that other systems leave


def _folders(root: Path) -> list[str]:
    """The names of the folders in `root`, but for hidden ones."""
    names = next(os.walk(root), ("", [], []))[1]
    return sorted(name for name in names if not name.startswith(_HIDDEN))


def _pictures(root: Path, name: str, skipped: list[str]) -> list[str] | None:
    """Paths of the pictures in `root`/`name` and below ("": only in the root), by folder, then by name; None
    where only this package keeps something. `skipped` gets what else there is, and why. DataError: splits."""
    ours = {os.path.realpath(place) for place in (data_root(), cache_root())}
    only_ours = os.path.realpath(root / name) in ours
    seen = {os.path.realpath(root), *ours} if name else set()
    pictures, reasons = [], {}
    options = {"onerror": lambda error: reasons.update({error.filename: error.strerror}), "followlinks": True}
    for folder, inner, files in os.walk(root / name, **options):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(child for child in inner if not child.startswith(_HIDDEN))
        if name and "record.json" in files:  # a run: its figures are no data
            inner[:], files = [], ["record.json"]
        splits = _splits(inner)
        if len(splits) > bool(name):  # below a class, a lone one may be anything
            raise DataError(printable(f"{folder} has the splits {', '.join(splits)}: use load(path, split)"))
        inner[:] = inner if name else []
        for file in files:
            path = os.path.join(folder, file)
            if file.startswith(_HIDDEN):
                continue
            elif file.lower() == "record.json" or file.lower().endswith(".safetensors"):
                reasons[path], only_ours = "kept here by ssl_lessons", True
            elif not file.lower().endswith(_SUFFIXES):
                reasons[path] = "not a picture by its ending"
            elif not os.path.isfile(path):
                reasons[path] = "not a file, or a link to none"
            else:
                pictures.append(path)
    skipped += [f"{printable(os.path.relpath(path, root))} ({reasons[path]})" for path in sorted(reasons)]
    return sorted(pictures, key=os.path.split) if pictures or not only_ours else None


def _mark(root: Path, samples: Sequence[tuple[str, int]], beside) -> str:
    """What a cache watches: sha256 over `beside`, and names, labels, lengths, times, numbers of the files."""
    mark = hashlib.sha256(repr(beside).encode())
    for path, label in samples:
        now = os.stat(path)
        mark.update(os.fsencode(os.path.relpath(path, root)))
        mark.update(f":{label}:{now.st_size}:{now.st_mtime_ns}:{now.st_ctime_ns}:{now.st_ino}\n".encode())
    return mark.hexdigest()


def _splits(names: list[str]) -> dict[str, str]:
    """The subfolders that are splits, {"Train2017": "train"}: all, or some to train and some to test."""
    called = {name: re.sub(rf"^({'|'.join(SPLITS)})[\d_-].*", r"\1", name.lower()) for name in names}
    splits = {name: split for name, split in called.items() if split in SPLITS}
    training = sum(split in ROLES["pretrain"] for split in splits.values())
    return splits if 0 < training < len(splits) or len(splits) == len(names) else {}


def _part(path: str | Path, split: str) -> Path:
    """The folder of a split: the subfolder that is called so, in any case, or the folder itself."""
    root, names = Path(os.path.expanduser(path)), ROLES.get(split, (split.lower(),))
    inner = _folders(root)
    splits = _splits(inner)
    own = next((name for name in names if name in (*map(str.lower, inner), *splits.values())), None)
    folders = [each for each in inner if each.lower() == own]
    folders = folders or [each for each in splits if splits[each] == own]
    doubtful = len(folders) > 1 or folders and split in ROLES and not splits
    missing = not folders and (splits or split not in ("train", "pretrain"))
    if doubtful or missing:
        has = printable(f"{root} has {', '.join(inner) or 'no folders'}")
        raise DataError(f"{has}: name the folder that is the split {split!r}, or read all with folder")
    return root / folders[0] if folders else root


# ---- Decoding, and the cache ------------------------------------------------------------------------------

_MOST_PIXELS = 2**26  # of one picture; beyond, it is refused: these take 256 MB, and as much a copy
_MANY_PIXELS = 2**24  # beyond, pictures are decoded one at a time
_ONE_AT_A_TIME = threading.Lock()
_FLIP = Image.Transpose
_TURNS = {  # what EXIF's orientations ask for
    2: _FLIP.FLIP_LEFT_RIGHT, 3: _FLIP.ROTATE_180, 4: _FLIP.FLIP_TOP_BOTTOM, 5: _FLIP.TRANSPOSE,
    6: _FLIP.ROTATE_270, 7: _FLIP.TRANSVERSE, 8: _FLIP.ROTATE_90,
}  # fmt: skip
Image.init()  # fills the tables of formats and endings
# without those that Pillow opens only to name them, or hands to another program
_FORMATS = tuple(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_SUFFIXES = tuple(ending for ending, kind in Image.EXTENSION.items() if kind in _FORMATS)


def square(source, size: int) -> np.ndarray:
    """A file, PIL image, tensor or array as uint8 (S, 3, S): upright, RGB, transparency on white, the largest
    central square, resized with antialiasing. ValueError for a picture that is too large, or whose numbers do
    not say what is white."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            try:
                return square(_opened(file, size), size)
            except Exception:  # struct.error too: Pillow forgives nothing in the notes of a PNG
                png = Path(source).read_bytes()
                if not png.startswith(b"\x89PNG\r\n\x1a\n"):
                    raise
                return square(Image.open(io.BytesIO(_without_notes(png))), size)
    if isinstance(source, (Tensor, np.ndarray)):  # to_pil_image lets numbers wrap
        floats = "float" in str(source.dtype)
        _check_white("float pixels" if floats else "pixels", source, 0, 1 if floats else 2**16 - 1)
    image = source if isinstance(source, Image.Image) else to_pil_image(source)
    _check_pixels(image)
    with _ONE_AT_A_TIME if image.width * image.height > _MANY_PIXELS else nullcontext():
        halved = ";16" in str(getattr(image, "tile", ""))  # colours of 16 bits: Pillow takes the upper 8
        image.load()
        turn = None
        with suppress(Exception):  # broken metadata costs no picture
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        image = image if turn is None else image.transpose(turn)
        if image.mode == "F":
            values = _check_white("float pixels", np.asarray(image), 0, 1)
            image = Image.fromarray((values * 255).round().astype(np.uint8))
        elif image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip them to white
            values = _check_white("pixels of 16 bits", np.asarray(image), 2**14, 2**16 - 1)
            values = np.where(values == image.info.get("transparency"), 255, values >> 8)  # clear is white
            image = Image.fromarray(values.astype(np.uint8))
        elif halved:
            _check_white("the upper 8 of 16 bits", np.asarray(image.convert("RGB")), 64, 255)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image if image.mode == "RGB" else image.convert("RGB")
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1))  # (S, S, 3) -> (S, 3, S)


def _opened(file: io.BufferedReader, size: int) -> Image.Image:
    """The picture of a file; of a JPEG, one decoded smaller, not below twice S."""
    if not file.peek(3).startswith(b"\xff\xd8\xff"):
        return Image.open(file, formats=_FORMATS)
    image = JpegImageFile(file)  # Image.open calls a large one a bomb, before it is decoded smaller
    if "progression" in image.info:  # is held as a whole all the same
        _check_pixels(image)
    image.draft(None, (2 * size, 2 * size))
    return image


def _without_notes(png: bytes) -> bytes:
    """A PNG without the chunks that make no pixels; EXIF stays if whole."""
    kept, at = [png[:8]], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind, checksum = png[at + 4 : at + 8], int.from_bytes(png[end - 4 : end], "big")
        whole_exif = kind == b"eXIf" and zlib.crc32(png[at + 4 : end - 4]) == checksum
        if kind == b"tRNS" or kind[:1].isupper() or whole_exif:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _check_white(what: str, values, least: float, most: float):
    """The same values, whose brightest is from `least` to `most`; NaN is refused too."""
    low, high = values.min(), values.max()
    if not (low >= 0 and least <= high <= most):
        raise ValueError(f"{what} run from {low:g} to {high:g}: scale them to 8 bits or to floats in [0, 1]")
    return values


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are over 64 million; make it smaller")


def _cached(store, size: int, source: str, build: Callable, progress: bool, limit=None) -> ImageStore:
    """`store` with its images: from a cache file of this `source`, or decoded from the dataset `build()`."""
    kind = re.sub(r"[^\w.-]", "_", store.split, flags=re.ASCII)[:20] + (f"-{limit}" if limit else "")
    path = cache_root() / f"{store.name}-{kind}-{size}.safetensors"  # a split may be called anything
    beside = path.with_name(f"{path.stem}.{source[:8]}.safetensors")
    store = replace(store, files=tuple(store.files[row] for row in _spaced(len(store.files), limit)))
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o666):  # of several processes, one builds it
        cached = _read(path, store, source) or _read(beside, store, source)
        if cached is None:
            dataset = build()
            _write(beside, store, dataset.__getitem__, _spaced(len(dataset), limit), size, source, progress)
        with suppress(FileNotFoundError, PermissionError):  # Windows keeps a file that is mapped: next time
            os.replace(beside, path)
        return cached or _read(path, store, source) or _read(beside, store, source)


def _write(path, store, item: Callable, rows, size: int, source: str, progress, workers=None) -> None:
    """Decode `item(row)`, a picture and its label, of all `rows` into a cache file."""

    def decoded(row: int) -> tuple[np.ndarray | str, object]:
        """Pixels, or why there are none; the label."""
        try:
            picture, label = item(row)
            return square(picture, size), label
        except MemoryError:
            raise
        except UnidentifiedImageError:  # whose message names the whole path
            return "not an image", None
        except Exception as error:  # decoders raise nearly anything on a damaged file
            return printable(f"{type(error).__name__}: {error}")[:160], None

    numbers, skipped = [], {}
    names = list(map(printable, store.files)) or [f"image {row}" for row in rows]
    bar = {"desc": f"Decoding {store.origin} to {size} px", "total": len(rows), "disable": not progress}
    try:  # Windows does not remove a file that is mapped: that is no error
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}", ignore_cleanup_errors=True) as place:
            raw, whole = Path(place, "raw"), Path(place, "whole")
            with open(raw, "wb") as file, ThreadPoolExecutor(workers) as pool:
                items = tqdm(pool.map(decoded, rows), leave=False, mininterval=1, delay=2, **bar)
                for name, (pixels, label) in zip(names, items, strict=True):
                    if isinstance(pixels, str):
                        skipped[len(numbers) + len(skipped)] = f"{name} ({pixels})"
                        continue
                    numbers.append(_class_number(label, name))
                    file.write(pixels)
            if not numbers:
                first = next(iter(skipped.values()), "")
                raise DataError(f"not one of {len(rows)} images of {store.origin} can be decoded: {first}")
            pixels = np.memmap(raw, np.uint8, "c", shape=(len(numbers), size, 3, size))  # not in memory
            tensors = {"images": torch.from_numpy(pixels)}
            if max(numbers) >= 0:  # -1 marks an image without a label, as in torchvision's STL10
                tensors["labels"] = torch.tensor(numbers)
            about = {"source": source, "origin": store.origin, "fingerprint": _fingerprint(tensors)}
            about |= {"classes": json.dumps(store.classes), "skipped": json.dumps(skipped)}
            save_file(tensors, whole, about | {"checksum": _checksum(about)})
            os.replace(whole, path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"could not write {path} ({error}); make room, or set SSL_LESSONS_DATA") from error


def _class_number(label, name: str) -> int:
    """A label as an int, -1 for None."""
    with suppress(TypeError):
        number = -1 if label is None else operator.index(label)
        if -1 <= number < 100_000:
            return number
    raise DataError(f"the label of {name} is {label!r:.200}; give the number of a class, from 0 on")


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    """The sha256 of pixels, then labels."""
    digest = hashlib.sha256(tensors["images"].numpy())
    if "labels" in tensors:
        digest.update(tensors["labels"].numpy())
    return digest.hexdigest()


def _checksum(about: dict[str, str]) -> str:
    """Of what a cache file says of its images."""
    return hashlib.sha256(json.dumps(sorted(about.items())).encode()).hexdigest()


def _read(path: Path, store: ImageStore, source: str) -> ImageStore | None:
    """`store` with the images of a cache file, mapped copy-on-write; None if missing, old or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            if about["source"] != source:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = about.pop("checksum", None)  # not in an older version's
        if _fingerprint(tensors) != about["fingerprint"] or checksum not in (None, _checksum(about)):
            raise ValueError("its checksum is another")
        rows, labels = tensors["images"], tensors.get("labels")
        skipped = dict(json.loads(about["skipped"]))  # by row; an older version's is []
        files = tuple(name for row, name in enumerate(store.files) if str(row) not in skipped)
        if files and len(files) != len(rows):
            raise ValueError(f"it has {len(rows)} images of {len(files)} files")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}) and is built again", stacklevel=4)
        return None
    skipped = (*skipped.values(), *store.skipped)
    if skipped:
        few = ", ".join(skipped[:5]) + ", …" * (len(skipped) > 5)
        told = f"{len(skipped)} of {len(skipped) + len(rows)} images of {store.origin} are left out: {few}"
        warnings.warn(told, stacklevel=4)
    classes = store.classes or range(0 if labels is None else int(labels.max()) + 1)
    kept = {"files": files, "fingerprint": about["fingerprint"], "skipped": skipped}
    return replace(store, images=rows.transpose(1, 2), labels=labels, classes=classes, **kept)


# ---- Where files lie, and how they come there -------------------------------------------------------------


def data_root() -> Path:
    """The folder of downloads: $SSL_LESSONS_DATA; else `data/` of the checkout (a folder with notebooks/ and
    ssl_lessons/) around the working directory, then around this file; else ~/.cache/ssl-lessons."""
    named = os.environ.get("SSL_LESSONS_DATA")
    if named:
        root = Path(os.path.expanduser(named))
        if not root.is_absolute() or root.exists() and not root.is_dir():
            raise DataError(f"SSL_LESSONS_DATA is {named!r}; name a folder by its path, {root.absolute()}")
        return root
    for place in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (place / "notebooks").is_dir() and (place / "ssl_lessons").is_dir():
            return place / "data"
    return home_folder("~/.cache/ssl-lessons")


def cache_root() -> Path:
    """The folder of decoded images, made if missing: data_root()/cache; where that cannot be written
    (a Kaggle input, a shared disk), ($XDG_CACHE_HOME or ~/.cache)/ssl-lessons."""
    user = home_folder(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ssl-lessons"
    for place in (data_root() / "cache", user):
        if _writable(place):
            return place
    raise DataError(f"neither {data_root()} nor {user} can be written: let SSL_LESSONS_DATA name a folder")


def _writable(place: Path) -> bool:
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK)
    return False


def find(name: str) -> Path | None:
    """A file or folder below the data root or the cache root, or None."""
    return next((place / name for place in (data_root(), cache_root()) if (place / name).exists()), None)


def fetch(name: str, size: int = 160, *, progress: bool = True, download: bool = True) -> Path:
    """The unpacked folder of a dataset: found, unpacked, or downloaded first; of two archives
    the smaller, if not below `size` pixels. DataError: no network, a wrong checksum, an unsafe archive."""
    archives = _entry(name).archives
    if not archives:
        return data_root()  # Shapes: nothing to fetch
    _check(size)
    side = next((side for side in archives if side >= size), max(archives))
    url, md5 = archives[side]
    file = url.rpartition("/")[2]
    inside = file.partition(".")[0]  # the one folder in the archive
    home = data_root() if _writable(data_root()) else cache_root()
    with FileLock(home / f".{inside}.lock", mode=0o666):  # one process fetches, the others wait
        if find(inside) is None:
            packed = find(file) or home / file
            if not packed.exists():
                _download(url, md5, packed, progress, download)
            _unpack(packed, md5, home / inside)
    return find(inside)


def _download(url: str, md5: str, packed: Path, progress: bool, allowed: bool) -> None:
    """Into a part file, going on from what an earlier call has left (neither torchvision nor pooch does), and
    renamed once its md5 is right."""
    part = packed.with_name(f".{packed.name}.part")
    try:
        if not allowed:
            raise OSError("download=False")
        if not check_integrity(part, md5):
            have = part.stat().st_size if part.exists() else 0
            asked = {"User-Agent": "ssl-lessons", "Range": f"bytes={have}-"}
            with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=30) as answer:
                bar = {"desc": packed.name, "total": answer.length, "mininterval": 1, "disable": not progress}
                with (
                    open(part, "ab" if answer.status == 206 else "wb") as file,  # 200: it sends all of it
                    tqdm.wrapattr(answer, "read", **bar) as stream,
                ):
                    shutil.copyfileobj(stream, file, 1 << 20)
                if answer.length:
                    raise OSError(f"the connection ended {answer.length:,} bytes early")
        arrived = calculate_md5(part)
        if arrived != md5:
            wrong = part.replace(f"{packed}.wrong")
            raise OSError(f"it arrived with md5 {arrived} instead of {md5}, and was set aside as {wrong}")
        part.replace(packed)
    except (OSError, HTTPException) as error:
        by_hand = f"get {url} elsewhere and put it at {data_root() / packed.name}"
        raise DataError(
            f"could not download {packed.name} ({error}). The next call goes on from what is there. "
            f"Or {by_hand}, or let SSL_LESSONS_DATA name its folder; 'shapes' needs no download"
        ) from error


def _unpack(packed: Path, md5: str, home: Path) -> None:
    """An archive's one folder, renamed to `home` when it is whole. tarfile's filter (3.10.12, 3.11.4) refuses
    what would lead outside, CVE-2007-4559; torchvision's own extraction has none before Python 3.14."""
    official = check_integrity(packed, md5)
    room = (1 << 20) + 10 * packed.stat().st_size  # photographs hardly shrink
    with TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as place:
        try:
            with tarfile.open(packed) as tar:
                for member in tar:
                    room -= member.size + 512
                    if room < 0:
                        raise tarfile.TarError("it unpacks to more than ten times its size")
                    tar.extract(member, place, filter="data")
                while tar.fileobj.read(1 << 20):  # to the end, where the checksum of a gzip file stands
                    pass
            sha256 = hashlib.sha256(np.memmap(packed, mode="r")).hexdigest()
            note = {"archive": packed.name, "sha256": sha256, "official": official}
            Path(place, home.name, _MARKER).write_text(json.dumps(note))
        except (tarfile.TarError, EOFError, zlib.error, OSError, TypeError) as error:
            reason = str(error).partition("\n")[0]  # tarfile lists every format it tried
            raise DataError(f"could not unpack {packed} ({reason}); remove it if damaged or wrong") from error
        Path(place, home.name).replace(home)
    if not official:
        warnings.warn(f"{packed} is not the official file: its md5 is not {md5}; it is used", stacklevel=4)


def _origin(home: Path) -> tuple[str, str]:
    """Where an unpacked folder came from, in words, and its archive's sha256, "" where that is not known."""
    try:
        note = json.loads((home / _MARKER).read_text())
        kind = "the official file" if note["official"] else "not the official file"
        return f"{note['archive']} (sha256 {note['sha256'][:16]}), {kind}", note["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{home.name}, unpacked by hand and not compared with the official archive", ""
