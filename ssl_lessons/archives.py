"""The catalogue of datasets, and how their files get here: fetched, verified, unpacked.

data/README.md says which file goes where, and where the addresses and checksums come from.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from ssl_lessons import shapes
from ssl_lessons.storage import (
    DataError,
    building,
    cache_root,
    data_root,
    find,
    progress_to,
    remove,
    writable,
)

STL_SIDE = 96  # pixels; the only size STL-10 comes in
_MARKER = ".ssl_lessons.json"  # inside an unpacked folder: the archive it came from


@dataclass(frozen=True)
class Archive:
    """A file to download: its address, the one folder inside it, published md5 and length in bytes."""

    url: str
    folder: str
    md5: str
    bytes: int

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Entry:
    """A dataset. `roles` maps "pretrain" | "train" | "test" to a native split where its name is another one,
    `archives` the short side of the stored images, in pixels, to the archive that holds them."""

    title: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    licence: str
    roles: dict[str, str]
    archives: dict[int, Archive] = field(default_factory=dict)
    wnids: tuple[str, ...] = ()


def _fastai(name: str, small: tuple[str, int], large: tuple[str, int]) -> dict[int, Archive]:
    url = f"https://s3.amazonaws.com/fast-ai-imageclas/{name}"
    return {n: Archive(f"{url}-{n}.tgz", f"{name}-{n}", *each) for n, each in ((160, small), (320, large))}


_IMAGENET = "ImageNet's terms: non-commercial research and teaching, https://image-net.org/download"
# fmt: off
CATALOGUE: dict[str, Entry] = {
    "imagenette": Entry(
        "Imagenette v2: ten easily told classes of ImageNet", ("train", "val"),
        ("tench", "English springer", "cassette player", "chain saw", "church",
         "French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
        _IMAGENET, {"pretrain": "train", "test": "val"},
        _fastai("imagenette2", ("e793b78cc4c9e9a4ccc0c1155377a412", 99003388),
                ("3df6f0d01a2c9592104656642f5e78a3", 341663724)),
        ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
         "n03394916", "n03417042", "n03425413", "n03445777", "n03888257")),
    "imagewoof": Entry(
        "Imagewoof v2: ten breeds of dog from ImageNet", ("train", "val"),
        ("Shih-Tzu", "Rhodesian ridgeback", "beagle", "English foxhound", "Border terrier",
         "Australian terrier", "golden retriever", "Old English sheepdog", "Samoyed", "dingo"),
        _IMAGENET, {"pretrain": "train", "test": "val"},
        _fastai("imagewoof2", ("3d200a7be99704a0d7509be2a9fbfe15", 92612825),
                ("0f46d997ec2264e97609196c95897a44", 328387740)),
        ("n02086240", "n02087394", "n02088364", "n02089973", "n02093754",
         "n02096294", "n02099601", "n02105641", "n02111889", "n02115641")),
    "stl10": Entry(
        "STL-10: 100,000 unlabelled, 5,000 training and 8,000 test images of 96 x 96",
        ("unlabeled", "train", "test"),
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        "from ImageNet, whose terms apply; cite Coates, Ng and Lee, AISTATS 2011", {"pretrain": "unlabeled"},
        {STL_SIDE: Archive("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "stl10_binary",
                           "91f7769df0f17e558f3565bffb0c7dfb", 2640397119)}),
    "shapes": Entry(
        "Shapes: ten forms and textures drawn from a seed, nothing to download", ("train", "test"),
        shapes.CLASSES, "drawn by this package and under its licence", {"pretrain": "train"}),
}
# fmt: on


def entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise DataError(f"dataset {name!r} is not known; choose one of: {', '.join(CATALOGUE)}, or a folder")
    return CATALOGUE[name]


# ---- Download, verify, unpack ----------------------------------------------------------------------------


def fetch(name: str, size: int = 160, *, progress: bool = True, download: bool = True) -> Path:
    """The unpacked folder of a dataset: found, or unpacked from its archive, or downloaded first.

    `size` picks the 160 or 320 px archive and means nothing where there is only one. Raises DataError for an
    unknown name or size, a missing network (naming the file and its place), a wrong checksum, an archive that
    would write outside its folder, and a full disk.
    """
    archives = entry(name).archives
    if not archives:
        return data_root()  # Shapes: nothing to fetch
    archive = archives.get(size) if len(archives) > 1 else next(iter(archives.values()))
    if archive is None:
        raise DataError(f"{name} has no {size} px archive; choose one of: {', '.join(map(str, archives))}")
    if there := find(archive.folder):
        return there
    home = data_root() if writable(data_root()) else cache_root()
    packed = find(archive.file) or home / archive.file
    if not packed.exists():
        if not download:
            raise DataError(f"{archive.file} is not here, and download=False. {_by_hand(archive)}")
        _download(archive, packed, progress)
    target = home / archive.folder
    with building(target, int(packed.stat().st_size * 1.25)) as part:
        if not target.exists():  # or else another process was faster
            _unpack(archive, packed, part, progress)
            if not target.exists():  # asked again: where there are no locks, another may have been faster
                os.replace(part / archive.folder, target)
            remove(part)
    return target


def _by_hand(archive: Archive) -> str:
    return (
        f"Get {archive.url} ({archive.bytes / 1e6:,.0f} MB) on a machine with network and put it at "
        f"{data_root() / archive.file}, or let SSL_LESSONS_DATA name the folder that holds it. The dataset "
        "'shapes' needs no download."
    )


def _download(archive: Archive, packed: Path, progress: bool) -> None:
    """Into a part file, going on from what an earlier try has left, and renamed once its md5 is right."""
    with building(packed, archive.bytes, keep=True) as part:
        for attempt in range(4):
            if packed.exists():
                return  # another process was faster
            have = part.stat().st_size if part.exists() else 0
            try:
                _receive(archive, part, have, progress)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                kept = part.stat().st_size if part.exists() else 0
                if attempt < 3 and kept > have:  # a line that breaks is tried again, a dead one is not
                    continue
                raise DataError(
                    f"could not download {archive.file} ({error}); {kept / 1e6:,.1f} MB are kept, and the "
                    f"next call goes on from there. {_by_hand(archive)}"
                ) from error
        md5, sha256 = digests(part)
        if md5 != archive.md5:
            wrong = packed.with_name(packed.name + ".wrong")
            os.replace(part, wrong)
            raise DataError(
                f"{archive.file} arrived with md5 {md5} instead of {archive.md5} (sha256 {sha256}), damaged "
                f"on the way or changed by its publisher. It was set aside as {wrong}. Try again, or rename "
                f"it to {packed.name} to use it all the same; the origin of the images will say so."
            )
        os.replace(part, packed)


def _receive(archive: Archive, part: Path, have: int, progress: bool) -> None:
    request = urllib.request.Request(archive.url, headers={"User-Agent": "ssl-lessons"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing follows what we have: the checksum will tell whether it is whole
            raise
        return
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        have = file.tell()  # 0 again where the server ignored the range
        total = have + (answer.length or 0) or archive.bytes
        move = progress_to(total >> 10, f"Downloading {archive.file}, {total / 1e6:,.0f} MB (KiB):", progress)
        while block := answer.read(1 << 18):
            file.write(block)
            move(file.tell() >> 10)
        if answer.length:  # what is still to come
            raise ConnectionError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def digests(path: Path) -> tuple[str, str]:
    """(md5, sha256) of a file."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _unpack(archive: Archive, packed: Path, part: Path, progress: bool) -> None:
    """Into `part`: plain files and folders below the archive's own folder; no "..", absolute path, link or
    device (CVE-2007-4559). Python's own filter is used as well, where it has one."""
    remove(part)
    part.mkdir()
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    md5, sha256 = digests(packed)
    move = progress_to(packed.stat().st_size >> 10, f"Unpacking {packed.name} (KiB):", progress)
    try:
        with open(packed, "rb") as raw, tarfile.open(fileobj=raw) as tar:
            for member in tar:
                steps = [step for step in member.name.split("/") if step not in ("", ".")]
                inside = not steps or (steps[0] == archive.folder and ".." not in steps)
                if not inside or member.name[0] in "/\\" or not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{packed} was not unpacked: {member.name!r} is no plain file below "
                        f"{archive.folder}/, so this is not the published archive. Remove it."
                    )
                tar.extract(member, part, **options)
                move(raw.tell() >> 10)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the archive
            raise
        reason = str(error).split("\n")[0]  # tarfile lists every format it tried
        raise DataError(f"{packed} is damaged ({reason}): remove it and fetch it again") from error
    if not (part / archive.folder).is_dir():
        raise DataError(
            f"{packed} holds no folder {archive.folder}/, so it is not {archive.file}. Remove it."
        )
    note = {"archive": packed.name, "sha256": sha256, "official": md5 == archive.md5}
    (part / archive.folder / _MARKER).write_text(json.dumps(note))


def check(archive: Archive, packed: Path) -> str:
    """ "ok: ..." or "damaged: ..." for an archive on disk, read in full."""
    md5 = digests(packed)[0]
    if md5 == archive.md5:
        return "ok: the official file"
    try:
        with tarfile.open(packed) as tar:
            count = sum(member.isreg() for member in tar)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        return f"damaged: {str(error).splitlines()[0]}"
    return f"ok: {count:,} whole files, but not the official file (md5 {md5}, published {archive.md5})"


def origin(folder: Path) -> tuple[str, str]:
    """Where an unpacked folder came from, in words, and a mark that changes when its files do."""
    try:
        note = json.loads((folder / _MARKER).read_text())
        kind = "the official file" if note["official"] else "not the official file"
        return f"{note['archive']} (sha256 {note['sha256'][:16]}), {kind}", note["sha256"]
    except (OSError, ValueError, KeyError):
        return f"{folder.name}, unpacked by hand and not compared with the official archive", listing(folder)


def listing(folder: Path) -> str:
    """A mark of the files below a folder: sha256 over their names, lengths and times."""
    mark = hashlib.sha256()
    for place, inner, files in os.walk(folder):
        inner.sort()
        for name in sorted(files):
            path = os.path.join(place, name)
            state = os.stat(path)
            mark.update(f"{os.path.relpath(path, folder)}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return mark.hexdigest()
