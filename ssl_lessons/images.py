"""Images as the lessons use them: fetched once, decoded once, then read as one uint8 tensor.

`load("imagenette", "train", size=64)` finds or downloads the archive, verifies and unpacks it, decodes every file
on two threads into one memory-mapped cache file, and returns an `ImageStore`. The next call only opens that file.

Where things lie: downloads under `data_root()`, decoded images under `cache_root()`. data/README.md says which
file goes where. Letters: N images, B batch, H and W stored height and width (equal), S the same side.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl_lessons import shapes

try:
    import fcntl
except ImportError:  # Windows: builds are still atomic there, but two processes may do the same work twice
    fcntl = None

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
STL_SIDE = 96
_WHOLE_CHECK = 256 << 20  # a cache file up to this many bytes is hashed whole when it is opened (0.1 to 0.6 s)
_MOST_SKIPPED = 1000  # more undecodable files than that are an error
_MARKER = ".ssl_lessons.json"  # inside an unpacked folder: which archive it came from


class DataError(RuntimeError):
    """Images that are missing, damaged or do not fit; the message names the file and the way out."""


@dataclass(frozen=True)
class Archive:
    """One downloadable file: `folder` is the one folder inside it, `bytes` its published length."""

    url: str
    folder: str
    md5: str
    bytes: int

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Entry:
    """One dataset of the catalogue. `archives` maps the short side of the stored images to their archive,
    `roles` maps "pretrain" | "train" | "test" to the native split where the name differs."""

    title: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    licence: str
    roles: dict[str, str] = field(default_factory=dict)
    archives: dict[int, Archive] = field(default_factory=dict)
    wnids: tuple[str, ...] = ()


def _fastai(name: str, *files: tuple[int, str, int]) -> dict[int, Archive]:
    where = "https://s3.amazonaws.com/fast-ai-imageclas"
    return {side: Archive(f"{where}/{name}-{side}.tgz", f"{name}-{side}", md5, size) for side, md5, size in files}


_IMAGENET = "ImageNet's terms: non-commercial research and teaching (https://image-net.org/download)"
# Checksums: data/README.md says from which sources, and how sure they are.
CATALOGUE: dict[str, Entry] = {
    "imagenette": Entry(
        "Imagenette v2: ten easily told classes of ImageNet",
        ("train", "val"),
        ("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
         "gas pump", "golf ball", "parachute"),
        _IMAGENET,
        {"pretrain": "train", "test": "val"},
        _fastai("imagenette2", (160, "e793b78cc4c9e9a4ccc0c1155377a412", 99003388),
                (320, "3df6f0d01a2c9592104656642f5e78a3", 341663724)),
        ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413",
         "n03445777", "n03888257"),
    ),
    "imagewoof": Entry(
        "Imagewoof v2: ten breeds of dog from ImageNet",
        ("train", "val"),
        ("Shih-Tzu", "Rhodesian ridgeback", "beagle", "English foxhound", "Border terrier", "Australian terrier",
         "golden retriever", "Old English sheepdog", "Samoyed", "dingo"),
        _IMAGENET,
        {"pretrain": "train", "test": "val"},
        _fastai("imagewoof2", (160, "3d200a7be99704a0d7509be2a9fbfe15", 92612825),
                (320, "0f46d997ec2264e97609196c95897a44", 328387740)),
        ("n02086240", "n02087394", "n02088364", "n02089973", "n02093754", "n02096294", "n02099601", "n02105641",
         "n02111889", "n02115641"),
    ),
    "stl10": Entry(
        "STL-10: 100,000 unlabelled images, 5,000 to train and 8,000 to test in ten classes, 96 x 96",
        ("unlabeled", "train", "test"),
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        "images from ImageNet, its terms apply; cite Coates, Ng and Lee, AISTATS 2011",
        {"pretrain": "unlabeled"},
        {STL_SIDE: Archive("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "stl10_binary",
                           "91f7769df0f17e558f3565bffb0c7dfb", 2640397119)},
    ),
    "shapes": Entry(
        "Shapes: ten forms and textures drawn from a seed; nothing to download",
        ("train", "test"), shapes.CLASSES, "drawn by this package, same licence", {"pretrain": "train"},
    ),
}  # fmt: skip
_SHAPES = {"train": (4000, 0), "test": (1000, 1)}  # split: (images, seed)


# ---- Where files lie ------------------------------------------------------------------------------------------


def data_root() -> Path:
    """The folder of downloads: $SSL_LESSONS_DATA; else `data/` of the checkout around the working directory, then
    around this file (a folder with both notebooks/ and ssl_lessons/); else ~/.cache/ssl-lessons."""
    if named := os.environ.get("SSL_LESSONS_DATA"):
        return Path(named).expanduser().absolute()
    here, package = Path.cwd(), Path(__file__).resolve().parent.parent
    for place in (here, *here.parents, package):
        if (place / "notebooks").is_dir() and (place / "ssl_lessons").is_dir():
            return place / "data"
    return Path("~/.cache/ssl-lessons").expanduser()


def cache_root() -> Path:
    """The folder of decoded images, made if missing: data_root()/cache, or ($XDG_CACHE_HOME or ~/.cache)/ssl-lessons
    where the data root cannot be written (a Kaggle input, a shared disk)."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl-lessons"
    for place in (data_root() / "cache", user):
        if _writable(place):
            return place
    raise DataError(f"neither {data_root()} nor {user} can be written; set SSL_LESSONS_DATA to a folder that can")


def _writable(place: Path) -> bool:
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK)
    return False


def _find(name: str) -> Path | None:
    return next((place / name for place in (data_root(), cache_root()) if (place / name).exists()), None)


@contextlib.contextmanager
def _building(target: Path, need: int, keep: bool = False) -> Iterator[Path]:
    """The right to build `target`, held by one process at a time, and the path to build it under.

    Whatever is left at that path by a failure is removed (`keep`: only when the disk is full), and a full disk,
    before or during the work, is told with the `need` in bytes. The lock dies with its process.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock, part = target.with_name(f".{target.name}.lock"), target.with_name(f".{target.name}.part")
    handle = None
    while fcntl is not None:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
        with contextlib.suppress(OSError):  # a network disk without locks: go on, renaming is still atomic
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                break
        os.close(handle)  # its last holder removed it while we waited: take the new one
    try:
        have = part.stat().st_size if keep and part.exists() else 0
        free = shutil.disk_usage(target.parent).free
        if need - have > free:
            raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB free")
        yield part
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or not keep:
            _remove(part)
        if full:
            raise DataError(
                f"no room for {target}: it takes {need / 1e6:,.1f} MB ({error.strerror}). Free some space, or let "
                "SSL_LESSONS_DATA name a folder on another disk; nothing was left behind."
            ) from error
        raise
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bar(total: int, label: str, show: bool) -> Callable[[int], None]:
    """A function that moves a progress bar to `done` of `total`, or does nothing."""
    if not show or total < 1:
        return lambda done: None
    from fastprogress import progress_bar  # late: it loads a web framework

    print(label)
    bar = progress_bar(range(total), leave=False)
    bar.update(0)
    return lambda done: bar.update(min(done, total))


# ---- Download, verify, unpack ---------------------------------------------------------------------------------


def fetch(name: str, size: int = 160, *, progress: bool = True, download: bool = True) -> Path:
    """The unpacked folder of a dataset: found, or unpacked from its archive, or downloaded first.

    `size` picks between the 160 and the 320 px archive; it is not used where there is one archive only. Raises
    DataError for an unknown name or size, without network (naming the file and where to put it), for a download with
    a wrong checksum, an archive that would write outside its folder, and a full disk.
    """
    archives = _entry(name).archives
    if not archives:
        return data_root()  # Shapes: nothing to fetch
    if len(archives) > 1 and size not in archives:
        raise DataError(f"{name} has no {size} px archive; choose one of: {', '.join(map(str, archives))}")
    archive = archives.get(size) or next(iter(archives.values()))
    if folder_ := _find(archive.folder):
        return folder_
    home = data_root() if _writable(data_root()) else cache_root()
    packed = _find(archive.file) or home / archive.file
    if not packed.exists():
        if not download:
            raise DataError(f"{archive.file} is not here and download=False. {_by_hand(archive)}")
        _download(archive, packed, progress)
    target = home / archive.folder
    with _building(target, int(packed.stat().st_size * 1.25)) as part:
        if not target.exists():
            _unpack(archive, packed, part, progress)
            os.replace(part / archive.folder, target)
            _remove(part)
    return target


def _by_hand(archive: Archive) -> str:
    return (
        f"Fetch {archive.url} ({archive.bytes / 1e6:,.0f} MB) on a machine with network and put the file at "
        f"{data_root() / archive.file}, or let SSL_LESSONS_DATA name the folder that holds it. "
        "The dataset 'shapes' needs no download."
    )


def _download(archive: Archive, packed: Path, progress: bool) -> None:
    """Download to a hidden part file, continuing what an earlier try left, and rename it once its md5 is right."""
    with _building(packed, archive.bytes, keep=True) as part:
        if packed.exists():
            return  # another process was faster
        for attempt in range(4):
            have = part.stat().st_size if part.exists() else 0
            try:
                _receive(archive, part, have, progress)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                gone = isinstance(error, urllib.error.HTTPError) and error.code < 500
                moved = part.exists() and part.stat().st_size > have
                if gone or attempt == 3 or not moved:  # a server that gave nothing new is not asked again
                    kept = part.stat().st_size if part.exists() else 0
                    raise DataError(
                        f"could not download {archive.url}: {error}. {kept / 1e6:,.1f} MB are kept and the next "
                        f"call continues from there. {_by_hand(archive)}"
                    ) from error
        md5, sha256 = _digests(part)
        if md5 != archive.md5:
            wrong = packed.with_name(packed.name + ".wrong")
            os.replace(part, wrong)
            raise DataError(
                f"{archive.file} arrived with md5 {md5}, expected {archive.md5} (sha256 {sha256}): damaged on the way, "
                f"or changed by its publisher. It was set aside as {wrong}; try again, or rename it to {packed} to "
                "use it all the same (the store's origin will say so)."
            )
        os.replace(part, packed)


def _receive(archive: Archive, part: Path, have: int, progress: bool) -> None:
    request = urllib.request.Request(archive.url, headers={"User-Agent": "ssl-lessons"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing after what we have; the checksum will tell whether it is whole
            raise
        return
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        have = file.tell()  # 0 again where the server ignored the range
        length = answer.length
        total = have + (length or max(archive.bytes - have, 0))
        move = _bar(total >> 10, f"Downloading {archive.file} ({total / 1e6:,.0f} MB)", progress)
        while block := answer.read(1 << 18):
            file.write(block)
            have += len(block)
            move(have >> 10)
    if length and have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _digests(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _unpack(archive: Archive, packed: Path, part: Path, progress: bool) -> None:
    """Unpack into `part`. Only plain files and folders below the archive's own folder are accepted: no absolute path,
    no "..", no link, no device (CVE-2007-4559)."""
    _remove(part)
    part.mkdir()
    md5, sha256 = _digests(packed)
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    count = 0
    try:
        with open(packed, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            move = _bar(packed.stat().st_size >> 10, f"Unpacking {packed.name}", progress)
            for member in tar:
                steps = [step for step in member.name.split("/") if step not in ("", ".")]
                odd = member.name.startswith("/") or ".." in steps or "\\" in member.name
                if odd or not (member.isreg() or member.isdir()) or steps[:1] not in ([], [archive.folder]):
                    raise DataError(f"{packed}: refused to unpack {member.name!r}, which is no plain file below "
                                    f"{archive.folder}/. This is not the published archive; remove it.")  # fmt: skip
                tar.extract(member, part, **safe)
                count += member.isreg()
                move(raw.tell() >> 10)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the archive
            raise
        raise DataError(f"{packed} cannot be unpacked ({error}): remove it and fetch it again") from error
    if not (part / archive.folder).is_dir():
        raise DataError(f"{packed} holds no folder {archive.folder}/: it is not {archive.file}")
    note = {"archive": packed.name, "md5": md5, "sha256": sha256, "official": md5 == archive.md5, "files": count}
    (part / archive.folder / _MARKER).write_text(json.dumps(note))


def _origin(folder_: Path) -> tuple[str, str]:
    """Where an unpacked folder came from, in words, and a signature that changes when it does."""
    try:
        note = json.loads((folder_ / _MARKER).read_text())
        words = f"{note['archive']}, sha256 {note['sha256'][:16]}, "
        return words + ("official file" if note["official"] else "not the official file"), note["sha256"]
    except (OSError, ValueError, KeyError):
        return f"{folder_.name}, unpacked by hand: not compared with the official archive", _listing(folder_)


def _listing(folder_: Path) -> str:
    """A signature of the files below a folder: their names, lengths and times."""
    digest = hashlib.sha256()
    for place, inner, files in os.walk(folder_):
        inner.sort()
        for name in sorted(files):
            state = os.stat(os.path.join(place, name))
            digest.update(f"{os.path.relpath(place, folder_)}/{name}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# ---- The store ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ImageStore:
    """N square images of one size, decoded once, and where they came from.

    images       uint8 (N, 3, H, W), RGB in 0..255: a permuted view of memory laid out (N, H, 3, W), in which
                 views.py needs no copy (STL-10 at 96 px is seen through its own column-major file instead)
    labels       int64 (N,), indices into `classes`, or None
    fingerprint  sha256 of pixels and labels, for the run record
    skipped      files that could not be decoded, as "name (reason)"
    origin       the archive or folder; says so when an archive is not the official file
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

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Tensor:
        """uint8 (B, 3, H, W), a copy laid out (B, H, 3, W), on `device` (the store's own if None)."""
        rows = self.images.transpose(1, 2)  # (N, H, 3, W)
        indices = torch.as_tensor(indices, dtype=torch.int64, device=rows.device)
        if rows.is_pinned():
            out = torch.empty(len(indices), *rows.shape[1:], dtype=torch.uint8, pin_memory=True)
            picked = torch.index_select(rows, 0, indices, out=out)
        else:
            picked = rows.index_select(0, indices)
        if device is not None:
            picked = picked.to(device, non_blocking=picked.is_pinned())
        return picked.transpose(1, 2)

    def to(self, device: torch.device | str, budget: int | None = None) -> ImageStore:
        """The same images nearer to `device`: on it if they fit `budget` bytes (default: half of its free memory),
        else in pinned memory if they fit half of the free RAM, else memory-mapped as they are. Labels stay on the
        CPU. A CPU device returns the store unchanged."""
        device = torch.device(device)
        if device.type == "cpu":
            return self
        rows = self.images.transpose(1, 2)
        if budget is None:
            budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30
        if rows.numel() <= budget:
            rows = rows.to(device).contiguous()
        elif device.type == "cuda" and rows.numel() <= _free_ram() // 2:
            rows = rows.contiguous().pin_memory()
        return replace(self, images=rows.transpose(1, 2))

    def subset(self, indices: Sequence[int] | Tensor) -> ImageStore:
        """The images at `indices`, copied, with a fingerprint of its own that follows from this one's."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        mark = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.batch(indices), labels=labels, fingerprint=mark)


def _free_ram() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


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
    """A split of a dataset as an `ImageStore`, every image `size` x `size` (short side resized, centre cropped).

    name      "imagenette" | "imagewoof" | "stl10" | "shapes", or the path of a folder (then `split` names a
              subfolder, or the whole folder for "train" where it has none)
    split     a native name, or the role "pretrain" | "train" | "test"
    fold      0..9: one of STL-10's ten official training folds of 1,000 images
    strict    refuse, instead of skipping with a warning, a file that cannot be decoded
    limit     at most so many images, evenly spaced over the split

    Raises DataError: unknown name, split, size or fold; missing files with download=False or without network; no
    images; a full disk.
    """
    size = _side(size)
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit!r}: at least one image, or None for all")
    if name not in CATALOGUE and Path(name).expanduser().is_dir():
        root = Path(name).expanduser()
        tried = {"pretrain": ("pretrain", "unlabeled", "train"), "test": ("test", "val", "valid")}.get(split, (split,))
        inner = next((root / one for one in tried if (root / one).is_dir()), None)
        if inner is None and split not in ("train", "pretrain"):
            raise DataError(f"{root} has no folder {' or '.join(tried)} for split {split!r}")
        return folder(inner or root, size, strict=strict, progress=progress, limit=limit, split=split)
    entry = _entry(name)
    native = entry.roles.get(split, split)
    if native not in entry.splits:
        known = dict.fromkeys([*entry.splits, "pretrain", "train", "test"])
        raise DataError(f"{name} has no split {split!r}; choose one of: {', '.join(known)}")
    if fold is not None and (name != "stl10" or native != "train" or fold not in range(10)):
        raise DataError(f"fold {fold!r}: only stl10's train split has folds, numbered 0 to 9")
    if name == "shapes":
        count, seed = _SHAPES[native]
        version = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()  # other code, other drawings

        def drawn() -> _Plan:
            pixels, labels = shapes.draw(count, size, seed)
            return _Plan([f"image {i}" for i in range(count)], labels, lambda i: np.ascontiguousarray(pixels[i].transpose(0, 2, 1)))

        blank = _blank(name, native, entry.classes, f"drawn by shapes.draw({count}, {size}, seed={seed})")
        store = _cached(blank, native, size, version, drawn, strict, progress)
        return store.subset(_even(count, limit)) if limit else store
    side = next((side for side in entry.archives if side >= size), max(entry.archives))
    larger = (s for s in entry.archives if s > side and not _find(entry.archives[side].folder))
    side = next((s for s in larger if _find(entry.archives[s].folder)), side)  # what is here already will do
    home = fetch(name, side, progress=progress, download=download)
    if name == "stl10":
        return _stl10(home, native, size, fold, limit, strict, progress)
    if missing := [wnid for wnid in entry.wnids if not (home / native / wnid).is_dir()]:
        raise DataError(f"{home / native} lacks {', '.join(missing)}: remove {home}, it will be unpacked again")
    origin, source = _origin(home)
    blank = _blank(name, native, entry.classes, origin)
    return _decoded(blank, home / native, entry.wnids, size, source, limit, strict, progress)


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise DataError(f"dataset {name!r} is not known; choose one of: {', '.join(CATALOGUE)}, or a folder")
    return CATALOGUE[name]


def _even(count: int, limit: int | None) -> list[int]:
    return [i * count // limit for i in range(limit)] if limit and limit < count else list(range(count))


def folder(
    path: str | Path,
    size: int,
    *,
    strict: bool = False,
    progress: bool = True,
    limit: int | None = None,
    split: str = "all",
) -> ImageStore:
    """Any folder of images. `path/class/*.jpg` (at any depth) makes every subfolder a class, sorted by name; images
    directly in `path` give labels None, with all images below it.

    A class folder without images keeps its number and is warned about (refused if strict). Raises DataError for a
    missing or empty folder; otherwise as `load`.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    inside = sorted(one for one in root.iterdir() if not _hidden(one.name))
    flat = any(_is_image(one.name) for one in inside)
    classes = () if flat else tuple(one.name for one in inside if one.is_dir())
    blank = _blank(f"{root.name}-{_sha(str(root))[:8]}", split, classes, f"folder {root}")
    return _decoded(blank, root, classes, _side(size), _listing(root), limit, strict, progress)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _hidden(name)


def _images(root: Path) -> Iterator[str]:
    for place, inner, files in os.walk(root):
        inner[:] = sorted(one for one in inner if not _hidden(one))
        yield from (os.path.join(place, one) for one in sorted(files) if _is_image(one))


def _side(size: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 1024:
        raise DataError(f"size {size!r}: an image side is a whole number of pixels from 8 to 1024")
    return size


# ---- Decoding and the cache -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What is to be written: a name for each image, int64 labels or None, and image i as uint8 (S, 3, S)."""

    names: list[str]
    labels: np.ndarray | None
    decode: Callable[[int], np.ndarray]


def _blank(name: str, split: str, classes: tuple[str, ...], origin: str) -> ImageStore:
    return ImageStore(torch.empty(0, dtype=torch.uint8), None, tuple(classes), name, split, "", (), origin)


def _decoded(blank, root, folders, size, source, limit, strict, progress) -> ImageStore:
    """The store of the files below `root`; its subfolders `folders` are the classes (none: no labels)."""

    def plan() -> _Plan:
        found = [(one, label) for label, each in enumerate(folders) for one in _images(root / each)]
        found = found if folders else [(one, -1) for one in _images(root)]
        if not found:
            raise DataError(f"no images in {root}: expected {root}/CLASS/*.jpg, or images directly in it "
                            f"({', '.join(SUFFIXES)})")  # fmt: skip
        if empty := sorted(set(range(len(folders))) - {label for _, label in found}):
            words = f"no images in {len(empty)} class folder(s) of {root}: {', '.join(folders[i] for i in empty)}"
            if strict:
                raise DataError(words)
            warnings.warn(words, stacklevel=2)
        found = [found[i] for i in _even(len(found), limit)]
        labels = np.array([label for _, label in found], dtype=np.int64) if folders else None
        names = [os.path.relpath(one, root) for one, _ in found]
        return _Plan(names, labels, lambda i: _decode(found[i][0], size))

    key = blank.split if limit is None else f"{blank.split}-{limit}"
    return _cached(blank, key, size, source, plan, strict, progress)


def _decode(path: str, size: int) -> np.ndarray:
    """One file as uint8 (S, 3, S): upright, RGB, the largest central square, resized with antialiasing."""
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8, never below twice S
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return _square(image.convert("RGB"), size)


def _square(image: Image.Image, size: int) -> np.ndarray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1))  # (S, S, 3) -> (S, 3, S)


def _cached(blank, key, size, source, plan, strict, progress) -> ImageStore:
    """`blank` filled from its cache file, which is built from `plan()` if it is missing, damaged or of another
    `source`. The file is in the safetensors layout: images (N, S, 3, S) uint8, labels (N,) int64."""
    path = cache_root() / f"{blank.name}-{key}-{size}.safetensors"
    store = _open(path, source, blank)
    if store is None:
        todo = plan()
        with _building(path, len(todo.names) * (3 * size * size + 8) + (1 << 16)) as part:
            store = _open(path, source, blank)  # another process may have been faster
            if store is None:
                _write(part, todo, size, source, blank, strict, progress)
                os.replace(part, path)
        store = store or _open(path, source, blank)
    if store.skipped:
        few = ", ".join(store.skipped[:5]) + ", ..." * (len(store.skipped) > 5)
        words = f"{len(store.skipped)} of {len(store) + len(store.skipped)} files of {blank.name} cannot be decoded"
        if strict:
            raise DataError(f"{words}: {few}. Remove them, or use strict=False to leave them out.")
        warnings.warn(f"{words} and are left out: {few}", stacklevel=2)
    return store


def _write(part, todo, size, source, blank, strict, progress) -> None:
    count, labelled = len(todo.names), todo.labels is not None
    longest = sorted(todo.names, key=len)[-_MOST_SKIPPED:]
    room = len(_header(count, size, labelled, source, blank, [f"{one} ({'x' * 100})" for one in longest], "f" * 64))
    room += -room % 8
    digest, kept, skipped = hashlib.sha256(), [], []

    def row(i: int) -> np.ndarray | str:
        try:
            return todo.decode(i)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            return f"{todo.names[i]} ({reason[:50].encode('ascii', 'replace').decode()})"

    move = _bar(count, f"Preparing {count:,} images of {blank.name} {blank.split} at {size} px", progress)
    with open(part, "wb") as file, ThreadPoolExecutor(min(4, max(2, os.cpu_count() or 2))) as pool:
        file.write(bytes(8 + room))
        for start in range(0, count, 512):  # so that no more than 512 decoded images ever wait in memory
            for i, pixels in enumerate(pool.map(row, range(start, min(start + 512, count))), start):
                if isinstance(pixels, str):
                    skipped.append(pixels)
                    if strict or len(skipped) > _MOST_SKIPPED:
                        raise DataError(f"cannot be decoded: {pixels} of {blank.origin}"
                                        + ("" if strict else f", and {_MOST_SKIPPED} more"))  # fmt: skip
                    continue
                file.write(pixels)
                digest.update(pixels)
                kept.append(i)
            move(start + 512)
        if not kept:
            raise DataError(f"none of {count} files of {blank.origin} can be decoded: {', '.join(skipped[:5])}")
        if labelled:
            labels = todo.labels[kept].astype("<i8").tobytes()
            file.write(labels)
            digest.update(labels)
        header = _header(len(kept), size, labelled, source, blank, skipped, digest.hexdigest())
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))
        file.flush()
        os.fsync(file.fileno())


def _header(count, size, labelled, source, blank, skipped, fingerprint) -> bytes:
    end = count * size * size * 3
    meta = {"source": source, "origin": blank.origin, "fingerprint": fingerprint}
    meta |= {"classes": json.dumps(blank.classes), "skipped": json.dumps(skipped)}
    head = {"__metadata__": meta}
    head["images"] = {"dtype": "U8", "shape": [count, size, 3, size], "data_offsets": [0, end]}
    if labelled:
        head["labels"] = {"dtype": "I64", "shape": [count], "data_offsets": [end, end + 8 * count]}
    return json.dumps(head).encode()


def _open(path: Path, source: str | None, blank: ImageStore, whole: bool = False) -> ImageStore | None:
    """`blank` with the contents of a cache file; None if it is missing, damaged (warned) or of another source."""
    if not path.exists():
        return None
    try:
        length = path.stat().st_size
        with open(path, "rb") as file:
            room = int.from_bytes(file.read(8), "little")
            if room > length:
                raise ValueError("no header")
            head = json.loads(file.read(room))
        meta, shape = head["__metadata__"], head["images"]["shape"]
        if source is not None and meta["source"] != source:
            return None
        pixels = int(np.prod(shape))
        if length != 8 + room + pixels + ("labels" in head) * 8 * shape[0]:
            raise ValueError("cut short")
        data = np.memmap(path, np.uint8, "c", offset=8 + room)  # copy on write: the file stays as it is
        if (whole or length <= _WHOLE_CHECK) and hashlib.sha256(data).hexdigest() != meta["fingerprint"]:
            raise ValueError("checksum")
        rows = torch.from_numpy(data[:pixels].reshape(shape))
        labels = torch.from_numpy(np.array(data[pixels:]).view("<i8")) if "labels" in head else None
        return replace(blank, images=rows.transpose(1, 2), labels=labels, fingerprint=meta["fingerprint"],
                       skipped=tuple(json.loads(meta["skipped"])), origin=meta["origin"])  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}); it has to be built again", stacklevel=2)
        return None


def _stl10(home, split, size, fold, limit, strict, progress) -> ImageStore:
    """STL-10's own files: uint8 (3, column, row) an image, labels from 1. At 96 px they are the store, unread."""
    file = home / f"{split}_X.bin"
    each = 3 * STL_SIDE * STL_SIDE
    try:
        state = file.stat()
        if state.st_size == 0 or state.st_size % each:
            raise DataError(f"{file} is damaged: {state.st_size:,} bytes are no multiple of {each:,}")
        pixels = np.memmap(file, np.uint8, "c").reshape(-1, 3, STL_SIDE, STL_SIDE)
        labels = None
        if split != "unlabeled":
            labels = np.fromfile(home / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
            if len(labels) != len(pixels) or not 0 <= labels.min() <= labels.max() <= 9:
                raise DataError(f"{home / f'{split}_y.bin'} does not fit: {len(labels)} labels, {len(pixels)} images")
        chosen = np.arange(len(pixels))
        if fold is not None:
            chosen = np.array((home / "fold_indices.txt").read_text().splitlines()[fold].split(), dtype=np.int64)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: remove {home}, it will be unpacked again") from error
    restricted = fold is not None or bool(limit and limit < len(chosen))
    chosen = chosen[_even(len(chosen), limit)]
    source = f"{state.st_size}:{state.st_mtime_ns}"
    blank = _blank("stl10", split, CATALOGUE["stl10"].classes, _origin(home)[0])
    if size != STL_SIDE:
        names = [f"{file.name}[{i}]" for i in chosen]
        plan = _Plan(names, None if labels is None else labels[chosen],
                     lambda i: _square(Image.fromarray(pixels[chosen[i]].transpose(2, 1, 0)), size))  # fmt: skip
        key = split + f"-fold{fold}" * (fold is not None) + f"-{limit}" * bool(limit)
        return _cached(blank, key, size, source, lambda: plan, strict, progress)
    note = cache_root() / f"stl10-{split}-{STL_SIDE}.json"  # hashing 2.7 GB takes seconds: once
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("source") != source:
        known = {"source": source, "fingerprint": _digests(file)[1]}
        note.write_text(json.dumps(known))
    store = replace(blank, images=torch.from_numpy(pixels).transpose(2, 3), fingerprint=known["fingerprint"],
                    labels=None if labels is None else torch.from_numpy(labels))  # fmt: skip
    return store.subset(chosen) if restricted else store


def verify(name: str | None = None) -> list[tuple[str, str, str]]:
    """(dataset, file, status) for every archive, unpacked folder and cache file that is here, read in full; a status
    that starts with "damaged" or "not official" wants attention. All datasets if `name` is None."""
    rows = []
    for each in CATALOGUE if name is None else [name]:
        for archive in _entry(each).archives.values():
            packed, home = _find(archive.file), _find(archive.folder)
            if packed:
                md5 = _digests(packed)[0]
                good = "official" if md5 == archive.md5 else f"not official: md5 {md5}, published {archive.md5}"
                rows.append((each, str(packed), good))
            if home:
                rows.append((each, str(home), _origin(home)[0]))
            if not packed and not home:
                rows.append((each, archive.file, f"missing: {archive.bytes / 1e6:,.0f} MB to download"))
        for path in sorted(cache_root().glob(f"{each}-*.safetensors")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                good = _open(path, None, _blank(each, "", (), ""), whole=True)
            rows.append((each, str(path), "good" if good else "damaged: remove it, it will be built again"))
    return rows
