"""images.py with archives.py and storage.py: real files, real processes, a real local server."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ssl_lessons import images, storage
from ssl_lessons.images import DataError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A data root of its own for each test, and a home of its own for what falls back there."""
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(seed=0, size=(40, 30)):
    """A smooth colourful picture, so that JPEG changes it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def photos(place, classes=("ant", "bee"), each=3):
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture(10 * label + i).save(place / name / f"{i}.jpg")
    return place


def truncated(path):
    """A JPEG whose second half is missing."""
    picture(3, (200, 200)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def left(place):
    """Files below a folder that a failed or finished build should not have left: parts, locks."""
    return [str(one) for one in place.rglob("*") if one.name.endswith((".part", ".lock"))]


def read(path, size=32, **options):
    return images.folder(path, size, progress=False, **options)


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def at_once(code, *arguments):
    """What two processes print that are let go together, once both have said "ready"."""
    both = [run(code, *arguments, stdin=subprocess.PIPE) for _ in range(2)]
    assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    return [one.communicate(timeout=90) for one in both]


# ---- The store ------------------------------------------------------------------------------------------


def test_layout_batch_subset_and_labels(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    assert store.images.shape == (6, 3, 32, 32) and store.images.dtype == torch.uint8
    assert store.images.transpose(1, 2).is_contiguous()  # memory (N, H, 3, W)
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1] and store.labels.dtype == torch.int64
    assert (store.classes, len(store), store.size) == (("ant", "bee"), 6, 32)
    batch = store.batch([4, 0, 4])
    assert batch.transpose(1, 2).is_contiguous() and torch.equal(batch, store.images[[4, 0, 4]])
    assert torch.equal(batch, store.batch(torch.tensor([4, 0, 4]), device="cpu"))
    with pytest.raises(IndexError):
        store.batch([6])
    part = store.subset([5, 1])
    assert torch.equal(part.images, store.images[[5, 1]]) and part.labels.tolist() == [1, 0]
    assert part.fingerprint not in (store.fingerprint, store.subset([1, 5]).fingerprint)
    assert part.fingerprint == store.subset(torch.tensor([5, 1])).fingerprint
    assert store.to("cpu") is store


def test_fingerprint_is_sha256_of_pixels_then_labels(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    rows = store.images.transpose(1, 2).numpy().tobytes()
    assert store.fingerprint == hashlib.sha256(rows + store.labels.numpy().tobytes()).hexdigest()


def test_writing_into_a_store_does_not_change_the_cache(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    store.images[0] = 0
    assert read(tmp_path / "zoo").images[0].sum() > 0


def test_cache_is_a_safetensors_file(tmp_path, root):
    store = read(photos(tmp_path / "zoo"))
    (path,) = (root / "cache").iterdir()
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("images"), store.images.transpose(1, 2))
        assert torch.equal(file.get_tensor("labels"), store.labels)
        assert json.loads(file.metadata()["classes"]) == ["ant", "bee"]
        assert file.metadata()["fingerprint"] == store.fingerprint


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_store_on_a_gpu_and_pinned(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    near, pinned = store.to("cuda"), store.to("cuda", budget=10)
    assert near.images.is_cuda and near.images.transpose(1, 2).is_contiguous()
    assert not pinned.images.is_cuda and pinned.images.is_pinned()
    for one in (near, pinned, store):
        assert torch.equal(one.batch([3, 1], device="cuda").cpu(), store.images[[3, 1]])


# ---- Decoding -------------------------------------------------------------------------------------------


def test_short_side_is_resized_and_the_centre_kept(tmp_path):
    wide = Image.new("RGB", (90, 30), "blue")
    wide.paste((255, 0, 0), (30, 0, 60, 30))  # red in the middle third
    wide.save(tmp_path / "wide.png")
    wide.rotate(90, expand=True).save(tmp_path / "tall.png")
    tall, broad = read(tmp_path, 16).images.permute(0, 2, 3, 1).numpy().astype(int)
    expected = wide.resize((48, 16), Image.Resampling.BILINEAR).crop((16, 0, 32, 16))
    assert np.abs(broad - np.asarray(expected)).max() <= 1
    assert np.abs(tall - np.asarray(expected.rotate(90))).max() <= 1


def test_large_jpeg_decoded_small_equals_decoding_it_whole(tmp_path):
    picture(1, (1200, 1200)).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as file:
        whole = np.asarray(file.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    mine = read(tmp_path).images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(mine - whole).max() <= 3


def test_grey_cmyk_palette_transparent_and_16_bit(tmp_path):
    source = picture(5, (32, 32))
    source.convert("L").save(tmp_path / "a_grey.jpg", quality=95)
    source.convert("CMYK").save(tmp_path / "b_cmyk.jpg", quality=95)
    source.quantize(256).save(tmp_path / "c_palette.png")
    ghost = source.convert("RGBA")
    ghost.putalpha(0)
    ghost.save(tmp_path / "d_transparent.png")
    deep = (np.asarray(source.convert("L")).astype(np.uint16) << 8) + 7
    Image.fromarray(deep).save(tmp_path / "e_deep.png")
    store = read(tmp_path)
    grey, cmyk, palette, ghost, deep = store.images.permute(0, 2, 3, 1).numpy().astype(int)
    colour, plain = np.asarray(source).astype(int), np.asarray(source.convert("L")).astype(int)[..., None]
    assert np.abs(grey - plain).mean() < 3 and (grey[..., 0] == grey[..., 2]).all()
    assert np.abs(cmyk - colour).mean() < 6
    assert np.abs(palette - colour).mean() < 12
    assert (ghost == 255).all()  # on white, not on whatever lies below
    assert np.abs(deep - plain).max() <= 1
    assert store.labels is None and store.skipped == ()


def test_exif_rotation_is_applied(tmp_path):
    upright = picture(6, (32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright.rotate(90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    mine = read(tmp_path).images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(mine - np.asarray(upright)).mean() < 4
    assert np.abs(mine - np.asarray(upright.rotate(90))).mean() > 15


def test_truncated_jpeg_is_named_counted_and_refused_if_strict(tmp_path, root):
    photos(tmp_path / "zoo")
    truncated(tmp_path / "zoo" / "bee" / "broken.jpg")
    (tmp_path / "zoo" / "ant" / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg|broken\.jpg"):
        read(tmp_path / "zoo", strict=True)
    assert not list((root / "cache").iterdir())
    with pytest.warns(UserWarning, match=r"2 of 8 files .* left out: .*text\.jpg .*broken\.jpg"):
        store = read(tmp_path / "zoo")
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(store.skipped) == 2
    assert store.skipped[1].startswith(os.path.join("bee", "broken.jpg") + " (")
    with pytest.warns(UserWarning, match="2 of 8"):  # and again from the cache
        assert read(tmp_path / "zoo").skipped == store.skipped
    with pytest.raises(DataError, match=r"2 of 8 files .*broken\.jpg"):
        read(tmp_path / "zoo", strict=True)


def test_header_has_room_for_many_odd_names(tmp_path, root):
    picture().save(tmp_path / "good.png")
    for i in range(300):
        (tmp_path / f'"{i}" é\\ü 漢字.jpg').write_text("no image")
    with pytest.warns(UserWarning, match="300 of 301"):
        assert len(read(tmp_path).skipped) == 300
    (path,) = (root / "cache").iterdir()
    with safe_open(path, "pt") as file:
        assert file.get_tensor("images").shape == (1, 32, 3, 32)


# ---- Folders --------------------------------------------------------------------------------------------


def test_empty_missing_and_undecodable_folders(tmp_path, root):
    with pytest.raises(DataError, match="not a folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "zoo" / "ant").mkdir(parents=True)
    for place in (tmp_path / "zoo" / "ant", tmp_path / "zoo"):
        with pytest.raises(DataError, match="no images in .*CLASS"):
            read(place)
    truncated(tmp_path / "zoo" / "ant" / "only.jpg")
    with pytest.raises(DataError, match=r"not one of 1 files .*only\.jpg"):
        read(tmp_path / "zoo")
    assert not left(root)


def test_class_folder_without_images_keeps_its_number(tmp_path):
    photos(tmp_path / "zoo", ("ant", "cat"))
    (tmp_path / "zoo" / "bee").mkdir()
    for _ in range(2):  # also when it comes from the cache
        with pytest.warns(UserWarning, match=r"no images in 1 class folder.* bee"):
            store = read(tmp_path / "zoo")
        assert store.classes == ("ant", "bee", "cat") and store.labels.tolist() == [0, 0, 0, 2, 2, 2]
        with pytest.raises(DataError, match="bee"):
            read(tmp_path / "zoo", strict=True)


def test_hidden_files_depth_and_images_without_classes(tmp_path):
    photos(tmp_path / "zoo" / "deep" / "deeper", ("ant",))
    (tmp_path / "zoo" / "__MACOSX").mkdir()
    (tmp_path / "zoo" / "deep" / "._0.jpg").write_text("left by another system")
    assert read(tmp_path / "zoo").classes == ("deep",) and len(read(tmp_path / "zoo")) == 3
    picture().save(tmp_path / "zoo" / "here.png")
    store = read(tmp_path / "zoo")
    assert store.labels is None and store.classes == () and len(store) == 4


def test_a_changed_folder_is_decoded_again(tmp_path):
    before = read(photos(tmp_path / "zoo"))
    picture(99).save(tmp_path / "zoo" / "ant" / "new.jpg")
    after = read(tmp_path / "zoo")
    assert (len(before), len(after)) == (6, 7) and before.fingerprint != after.fingerprint


def test_folder_by_name_with_splits(tmp_path):
    photos(tmp_path / "zoo" / "train", each=4)
    photos(tmp_path / "zoo" / "val", each=1)
    name = str(tmp_path / "zoo")
    sizes = [len(images.load(name, split, 16, progress=False)) for split in ("pretrain", "train", "test")]
    assert sizes == [8, 8, 2]
    with pytest.raises(DataError, match="test or val"):  # never the training images under another name
        images.load(str(tmp_path / "zoo" / "train"), "test", 16)


@pytest.mark.parametrize("size", [0, -3, 7, 4096, 64.0, "64", True, None])
def test_wrong_size(tmp_path, size):
    for call in (images.load, lambda name, split, size: read(tmp_path, size)):
        with pytest.raises(DataError, match="whole number of pixels from 8 to 1024"):
            call("shapes", "train", size)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(
        DataError, match="'imagenete' is not known; choose one of: imagenette, .* or a folder"
    ):
        images.load("imagenete")
    with pytest.raises(DataError, match="no split 'validation'; choose one of: train, val"):
        images.load("imagenette", "validation")
    with pytest.raises(DataError, match="no 64 px archive; choose one of: 160, 320"):
        images.fetch("imagenette", 64)
    with pytest.raises(DataError, match="only stl10"):
        images.load("imagenette", "train", fold=1)
    with pytest.raises(DataError, match="at least one"):
        images.load("shapes", limit=0)


# ---- Roots ----------------------------------------------------------------------------------------------


def test_data_root(tmp_path, monkeypatch, root):
    assert images.data_root() == root
    monkeypatch.delenv("SSL_LESSONS_DATA")
    checkout = tmp_path / "checkout"
    for name in ("notebooks/grids", "ssl_lessons"):
        (checkout / name).mkdir(parents=True)
    monkeypatch.chdir(checkout / "notebooks" / "grids")
    assert images.data_root() == checkout / "data"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="which is a file"):
        images.data_root()


def test_cache_falls_back_where_the_data_root_cannot_be_written(tmp_path, root):
    (root / "cache").write_text("in the way")
    assert images.cache_root() == tmp_path / "xdg" / "ssl-lessons"
    store = read(photos(tmp_path / "zoo"))
    assert len(store) == 6 and len(list(images.cache_root().iterdir())) == 1


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="needs root, to become a user without rights"
)
def test_read_only_root_that_holds_only_the_archive(tmp_path, root, small_archive):
    os.replace(small_archive, root / small_archive.name)
    root.chmod(0o555)
    home = Path("/tmp") / f"ssl-lessons-test-{os.getpid()}"
    code = """
import os, sys
from ssl_lessons import images  # imported before the rights are dropped: the checkout may be ours alone
images.fetch, images.shapes, __import__("PIL.JpegImagePlugin"), __import__("encodings.idna")
os.setgid(65534); os.setuid(65534)
store = images.load("imagenette", "test", 32, progress=False)
print(len(store), images.cache_root(), sorted(os.listdir(images.cache_root())))
"""
    try:
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        for place in (root, *root.parents):
            if place.owner() == "root" and place != Path("/") and not place.stat().st_mode & 1:
                place.chmod(place.stat().st_mode | 0o005)
        out, err = run(code, env=os.environ | {"XDG_CACHE_HOME": str(home)}).communicate(timeout=60)
        assert out.startswith(
            f"20 {home}/ssl-lessons ['imagenette-val-32.safetensors', 'imagenette2-160']"
        ), err
        assert [one.name for one in root.iterdir()] == ["imagenette2-160.tgz"]
    finally:
        storage.remove(home)


# ---- Cache files: damage, a full disk, two processes ----------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "empty", "header"])
def test_damaged_cache_file_is_noticed_and_built_again(tmp_path, root, damage):
    good = read(photos(tmp_path / "zoo"))
    (path,) = (root / "cache").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-2000] ^= 1  # one bit of one pixel
    if damage == "header":
        data[:8] = b"\xff" * 8
    data = {"cut": data[:-100], "garbage": b"\0" * len(data), "empty": b""}.get(damage, data)
    path.unlink()  # the open store keeps the old file
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        again = read(tmp_path / "zoo")
    assert again.fingerprint == good.fingerprint and torch.equal(again.images, good.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path / "zoo")


FILL = """
import resource, sys
from ssl_lessons import images
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    images.folder(sys.argv[1], 128, progress=False)
except images.DataError as error:
    print(error)
"""


def test_full_disk_while_writing_leaves_nothing(tmp_path, root):
    photos(tmp_path / "zoo", each=10)
    out, err = run(FILL, tmp_path / "zoo").communicate(timeout=60)  # the system refuses to write past 100 kB
    assert "no room for" in out and "takes 1.0 MB" in out and "SSL_LESSONS_DATA" in out, err
    assert list((root / "cache").iterdir()) == []


def test_full_disk_on_a_real_small_disk(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        monkeypatch.setenv("SSL_LESSONS_DATA", str(disk))
        with pytest.raises(DataError, match=r"takes 1\.0 MB .*MB are free.*another disk"):
            read(photos(tmp_path / "zoo", each=10), 128)
        assert list((disk / "cache").iterdir()) == []
        assert len(read(tmp_path / "zoo", 16)) == 20  # what fits is still done
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_processes_build_the_same_cache_at_once(tmp_path, root):
    photos(tmp_path / "zoo", each=150)
    code = """
import sys, time
from ssl_lessons import images, storage
write = storage._write
def counted(*arguments):
    print("wrote", flush=True)
    write(*arguments)
storage._write = counted
print("ready", flush=True)
input()
print(images.folder(sys.argv[1], 64, progress=False).fingerprint)
"""
    answers = at_once(code, tmp_path / "zoo")
    prints = {out.split()[-1] for out, _ in answers}
    assert len(prints) == 1, answers
    assert sum(out.count("wrote") for out, _ in answers) == 1  # the other one waited and read
    (path,) = (root / "cache").iterdir()
    assert storage.reopen(path).fingerprint in prints


def test_a_build_that_was_killed_is_no_obstacle(tmp_path, root):
    photos(tmp_path / "zoo", each=5)
    code = """
import os, sys
from ssl_lessons import images, storage
storage.os.fsync = lambda handle: os.kill(os.getpid(), 9)
images.folder(sys.argv[1], 32, progress=False)
"""
    dead = run(code, tmp_path / "zoo")
    dead.communicate(timeout=60)
    assert dead.returncode == -9 and left(root)
    assert len(read(tmp_path / "zoo")) == 10 and not left(root)


# ---- Shapes and STL-10 ----------------------------------------------------------------------------------


def test_shapes_roles_and_limit(monkeypatch):
    monkeypatch.setattr(images, "_SHAPES", {"train": (60, 0), "test": (30, 1)})
    train, test = (images.load("shapes", split, 16, progress=False) for split in ("pretrain", "test"))
    assert (len(train), train.split, len(test), test.split) == (60, "train", 30, "test")
    assert train.classes == images.CATALOGUE["shapes"].classes and "seed=0" in train.origin
    assert torch.bincount(test.labels).tolist() == [3] * 10
    few = images.load("shapes", "train", 16, limit=20, progress=False)
    assert len(few) == 20 and torch.equal(few.images[1], train.images[3])
    assert len(images.load("shapes", "train", 16, limit=1000, progress=False)) == 60


@pytest.fixture
def stl(root):
    """STL-10's layout in small: 40 training images, 20 to test, 30 unlabelled."""
    place = root / "stl10_binary"
    place.mkdir()
    rng = np.random.default_rng(0)
    pictures = {}
    for split, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        upright = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)  # (N, row, column, channel)
        upright.transpose(0, 3, 2, 1).tofile(
            place / f"{split}_X.bin"
        )  # column-major: (N, channel, column, row)
        pictures[split] = upright
        if split != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(place / f"{split}_y.bin")
    lines = [" ".join(map(str, rng.permutation(40)[:10])) for _ in range(10)]
    (place / "fold_indices.txt").write_text("\n".join(lines) + "\n")
    return place, pictures, lines


def test_stl10_is_upright_zero_based_and_not_copied(stl, root):
    place, pictures, _ = stl
    for split, native in (("pretrain", "unlabeled"), ("train", "train"), ("test", "test")):
        store = images.load("stl10", split, 96, progress=False)
        assert np.array_equal(store.images.permute(0, 2, 3, 1).numpy(), pictures[native])
        batch = store.batch([2, 0])
        assert batch.transpose(1, 2).is_contiguous() and torch.equal(batch, store.images[[2, 0]])
        expected = None if native == "unlabeled" else (np.arange(len(store)) % 10).tolist()
        assert (None if store.labels is None else store.labels.tolist()) == expected
    assert (
        store.classes[0] == "airplane" and store.fingerprint == images.load("stl10", "test", 96).fingerprint
    )
    assert not list((root / "cache").glob("*.safetensors"))


def test_stl10_folds_limit_and_another_size(stl):
    _, pictures, lines = stl
    fold = images.load("stl10", "train", 96, fold=3, progress=False)
    indices = np.array(lines[3].split(), int)
    assert np.array_equal(fold.images.permute(0, 2, 3, 1).numpy(), pictures["train"][indices])
    assert fold.labels.tolist() == (indices % 10).tolist()
    small = images.load("stl10", "train", 48, fold=3, progress=False)
    assert small.labels.tolist() == fold.labels.tolist() and small.size == 48
    mine = small.images[0].permute(1, 2, 0).numpy().astype(int)
    theirs = Image.fromarray(pictures["train"][indices[0]]).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.abs(mine - np.asarray(theirs)).max() <= 1
    assert len(images.load("stl10", "pretrain", 96, limit=7, progress=False)) == 7
    for wrong in (10, -1, "3"):
        with pytest.raises(DataError, match="folds, 0 to 9"):
            images.load("stl10", "train", 96, fold=wrong)


def test_stl10_damaged_files(stl):
    place = stl[0]
    (place / "train_y.bin").write_bytes(b"\x0b" * 40)
    with pytest.raises(DataError, match="40 labels from 1 to 10"):
        images.load("stl10", "train", 96)
    with open(place / "test_X.bin", "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="not a number of whole images"):
        images.load("stl10", "test", 96)
    (place / "unlabeled_X.bin").unlink()
    with pytest.raises(DataError, match=r"unlabeled_X\.bin is missing"):
        images.load("stl10", "unlabeled", 96)


def test_stl10_is_never_in_memory_whole(stl):
    code = """
import os, resource, sys
from ssl_lessons import images
images.load("stl10", "test", 96).batch([0])  # what is loaded once
def mine():  # MB of anonymous memory: pages of a file can be dropped again and do not count
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
with open(sys.argv[1], "r+b") as file:
    file.truncate(10_000 * 27_648)  # 276 MB
before = mine()
store = images.load("stl10", "unlabeled", 96, progress=False)
store.batch(range(0, 10_000, 100))
print(len(store), mine() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    out, err = run(code, stl[0] / "unlabeled_X.bin").communicate(timeout=60)
    count, grown = out.split()
    assert count == "10000" and float(grown) < 60, err


# ---- Archives: unpacking, checksums, download -----------------------------------------------------------


@pytest.fixture
def small_archive(tmp_path):
    """imagenette2-160.tgz in small: the official layout, two images a class and split."""
    tree = tmp_path / "made" / "imagenette2-160"
    for split in ("train", "val"):
        photos(tree / split, images.CATALOGUE["imagenette"].wnids, each=2)
    (tree / "noise.bin").write_bytes(np.random.default_rng(0).bytes(300_000))  # some length to interrupt
    path = tmp_path / "made" / "imagenette2-160.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "imagenette2-160")
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file; `cut` ends answers after so many bytes, `ranges` tells whether it knows Range."""

    content, ranges, cut, asked = b"", True, [], None

    def do_GET(self):
        self.asked.append(self.headers.get("Range"))
        first = int(self.headers["Range"][6:-1]) if self.ranges and self.headers.get("Range") else 0
        if first and first >= len(self.content):
            self.send_error(416)
            return
        body = self.content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut.pop(0) if self.cut else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch, small_archive):
    """serve(**options) starts a server on 127.0.0.1, to which the catalogue then points."""
    with contextlib.ExitStack() as stack:

        def start(md5=None, content=None, **options):
            content = small_archive.read_bytes() if content is None else content
            handler = type("Mine", (Handler,), {"content": content, "asked": [], "cut": [], **options})
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
            stack.callback(server.shutdown)
            known = images.CATALOGUE["imagenette"]
            archive = replace(
                known.archives[160],
                url=f"http://127.0.0.1:{server.server_port}/imagenette2-160.tgz",
                md5=md5 or hashlib.md5(small_archive.read_bytes()).hexdigest(),
                bytes=len(content),
            )
            entry = replace(known, archives={**known.archives, 160: archive})
            monkeypatch.setitem(images.CATALOGUE, "imagenette", entry)
            return handler

        yield start


def get(split="train", **options):
    return images.load("imagenette", split, 32, progress=False, **options)


def test_download_verify_unpack_decode(serve, root):
    server = serve()
    store = get()
    assert len(store) == 20 and store.classes[:2] == ("tench", "English springer")
    assert store.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert store.origin.endswith("the official file") and "not" not in store.origin
    assert get("test").split == "val" and len(server.asked) == 1
    assert [row[2].split(":")[0] for row in images.verify("imagenette")] == ["ok"] * 4
    assert not left(root)


def test_interrupted_download_goes_on_where_it_stopped(serve, root):
    server = serve(cut=[100_000, 0])  # then a second answer that brings nothing: given up
    with pytest.raises(DataError, match=r"0\.1 MB are kept, and the next call goes on"):
        get()
    assert (root / ".imagenette2-160.tgz.part").stat().st_size == 100_000
    assert len(get()) == 20
    assert server.asked == [None, "bytes=100000-", "bytes=100000-"]
    assert not left(root)


def test_a_broken_line_is_taken_up_at_once(serve):
    server = serve(cut=[100_000, 50_000])
    assert len(get()) == 20 and server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_server_without_range_starts_again(serve):
    server = serve(cut=[100_000], ranges=False)
    assert len(get()) == 20 and server.asked == [None, "bytes=100000-"]


def test_part_that_is_already_whole(serve, root, small_archive):
    server = serve()
    (root / ".imagenette2-160.tgz.part").write_bytes(small_archive.read_bytes())
    assert len(get()) == 20 and len(server.asked) == 1  # answered 416


def test_wrong_checksum_is_set_aside_and_can_be_accepted_by_hand(serve, root):
    serve(md5="0" * 32)
    wrong = root / "imagenette2-160.tgz.wrong"
    with pytest.raises(DataError, match=r"arrived with md5 \w{32} instead of 0{32} .*set aside as .*\.wrong"):
        get()
    assert [one.name for one in root.iterdir() if not one.is_dir()] == [wrong.name]
    wrong.rename(root / "imagenette2-160.tgz")
    sha256 = hashlib.sha256((root / "imagenette2-160.tgz").read_bytes()).hexdigest()
    assert get().origin == f"imagenette2-160.tgz (sha256 {sha256[:16]}), not the official file"


def test_without_network_the_error_says_which_file_to_put_where(monkeypatch, root):
    known = images.CATALOGUE["imagenette"]
    dead = replace(known.archives[160], url="http://127.0.0.1:9/imagenette2-160.tgz")  # nobody listens there
    monkeypatch.setitem(images.CATALOGUE, "imagenette", replace(known, archives={160: dead}))
    for options in ({}, {"download": False}):
        with pytest.raises(DataError) as caught:
            get(**options)
        for part in (dead.url, "99 MB", str(root / "imagenette2-160.tgz"), "SSL_LESSONS_DATA", "shapes"):
            assert part in str(caught.value)
    assert not left(root)


def test_archive_or_folder_put_in_place_by_hand(small_archive, root):
    (root / small_archive.name).write_bytes(small_archive.read_bytes())
    first = get(download=False)
    assert "not the official file" in first.origin
    assert any("not the official file" in row[2] for row in images.verify())
    (root / "imagenette2-160" / ".ssl_lessons.json").unlink()  # as if unpacked by hand
    second = get(download=False)
    assert "by hand" in second.origin and second.fingerprint == first.fingerprint
    for one in (root / "imagenette2-160" / "val").iterdir():
        storage.remove(one)
    with pytest.raises(DataError, match="lacks n01440764, .* unpacked again"):
        get("val")


def test_damaged_archive(small_archive, root):
    data = small_archive.read_bytes()
    packed = root / small_archive.name
    for damaged in (data[: len(data) // 2], b"no archive", b""):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"imagenette2-160\.tgz is damaged .*fetch it again"):
            get(download=False)
        assert images.verify("imagenette")[0][2].startswith("damaged")
        assert not left(root) and not (root / "imagenette2-160").exists()


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EVIL = [
    tarfile.TarInfo("../x"),
    tarfile.TarInfo("imagenette2-160/../../x"),
    tarfile.TarInfo("/tmp/ssl-lessons-evil"),
    tarfile.TarInfo("elsewhere/x"),
    link("imagenette2-160/x", "/etc/passwd"),
    link("imagenette2-160/x", "../../x", tarfile.LNKTYPE),
    link("imagenette2-160/x", "", tarfile.FIFOTYPE),
]


@pytest.mark.parametrize("filtered", [True, False], ids=["filter", "no filter"])
@pytest.mark.parametrize("evil", EVIL, ids=lambda member: f"{member.name}{member.type.decode()}")
def test_malicious_archive_is_refused_and_nothing_is_left(evil, filtered, root, monkeypatch):
    if not filtered:  # a Python from before tarfile had filters
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(root / "imagenette2-160.tgz", "w:gz") as tar:
        good = tarfile.TarInfo("imagenette2-160/good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        tar.addfile(evil)
    with pytest.raises(DataError, match="was not unpacked: .* is no plain file below imagenette2-160/"):
        get(download=False)
    assert sorted(one.name for one in root.iterdir()) == ["cache", "imagenette2-160.tgz"]
    assert not (root.parent / "x").exists() and not Path("/tmp/ssl-lessons-evil").exists()


def test_full_disk_while_unpacking_leaves_only_the_archive(small_archive, root):
    (root / small_archive.name).write_bytes(small_archive.read_bytes())
    code = FILL.replace("images.folder(sys.argv[1], 128,", "images.load('imagenette',")
    out, err = run(code).communicate(timeout=60)
    assert "no room for" in out and "imagenette2-160" in out, err
    assert sorted(one.name for one in root.iterdir()) == ["cache", "imagenette2-160.tgz"]


def test_two_processes_unpack_at_once(small_archive, root):
    (root / small_archive.name).write_bytes(small_archive.read_bytes())
    code = """
import sys, time
from ssl_lessons import images
print("ready", flush=True)
input()
print(images.load("imagenette", "train", 32, progress=False).fingerprint)
"""
    answers = at_once(code)
    assert len({out for out, _ in answers}) == 1 and answers[0][0], answers
    assert not left(root)


def test_a_larger_archive_that_is_here_will_do(small_archive, root):
    tree = small_archive.parent / "imagenette2-160"
    with tarfile.open(root / "imagenette2-320.tgz", "w:gz") as tar:
        tar.add(tree, "imagenette2-320")
    assert "imagenette2-320" in get(download=False).origin
    with pytest.raises(DataError, match=r"imagenette2-160\.tgz is not here"):
        images.fetch("imagenette", 160, download=False)


def test_progress_bars_are_shown_only_when_asked_for(serve, tmp_path, capfd):
    serve()
    get()
    read(photos(tmp_path / "zoo"))
    assert capfd.readouterr().out == ""
    storage.remove(images.data_root())
    images.load("imagenette", "train", 32)
    shown = capfd.readouterr().out
    assert all(
        word in shown for word in ("Downloading imagenette2-160.tgz", "Unpacking", "Decoding 20 images")
    )


def test_catalogue_is_complete():
    for name, entry in images.CATALOGUE.items():
        assert len(entry.classes) == 10 and entry.licence and set(entry.roles.values()) <= set(entry.splits)
        for archive in entry.archives.values():
            assert len(archive.md5) == 32 and archive.url.endswith(archive.file)
            page = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
            line = f"| `{archive.file}` | {archive.url} | {archive.bytes:,} | `{archive.md5}` |"
            assert line in page, f"data/README.md does not agree with the catalogue about {name}"


def test_checksums_agree_with_torchvision():
    from torchvision.datasets import STL10, Imagenette

    theirs = {url: md5 for url, md5 in Imagenette._ARCHIVES.values()} | {STL10.url: STL10.tgz_md5}
    mine = [*images.CATALOGUE["imagenette"].archives.values(), *images.CATALOGUE["stl10"].archives.values()]
    assert {one.url: one.md5 for one in mine}.items() <= theirs.items()
    for wnid, name in zip(
        images.CATALOGUE["imagenette"].wnids, images.CATALOGUE["imagenette"].classes, strict=True
    ):
        assert Imagenette._WNID_TO_CLASS[wnid][0] == name


def test_lock_is_let_go_and_the_next_one_builds(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match="mine"), storage.building(target, 1) as part:
        part.write_text("half")
        raise ValueError("mine")
    assert not part.exists()
    with storage.building(target, 1) as part:
        part.write_text("whole")
        os.replace(part, target)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["target"]
