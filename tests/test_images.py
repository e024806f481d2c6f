"""images.py: real files, real processes, a real local server."""

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
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import STL10, FakeData, Imagenette

from ssl_lessons import images
from ssl_lessons.images import DataError

pytestmark = pytest.mark.usefixtures("root")


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


def litter(place):
    """What a failed or finished build should not have left below a folder."""
    kept = (".jpg", ".JPEG", ".safetensors", ".lock", ".tgz", ".json", ".bin", ".txt")
    return [str(one) for one in place.rglob(".*") if one.suffix not in kept]


def caches(root):
    return sorted((root / "cache").glob("*.safetensors"))


def read(path, size=32, **options):
    return images.folder(path, size, progress=False, **options)


def upright(store):
    """The pixels as (N, row, column, channel), for arithmetic."""
    return store.images.permute(0, 2, 3, 1).numpy().astype(int)


# ---- The store ------------------------------------------------------------------------------------------


def test_layout_batch_subset_labels_and_files(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    assert store.images.shape == (6, 3, 32, 32) and store.images.dtype == torch.uint8
    assert store.images.transpose(1, 2).is_contiguous()  # memory (N, S, 3, S)
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1] and store.labels.dtype == torch.int64
    assert (store.classes, len(store), store.size) == (("ant", "bee"), 6, 32)
    assert store.files[4] == os.path.join("bee", "1.jpg")
    batch = store.batch([4, 0, 4])
    assert batch.transpose(1, 2).is_contiguous() and torch.equal(batch, store.images[[4, 0, 4]])
    assert torch.equal(batch, store.batch(torch.tensor([4, 0, 4]), device="cpu"))
    with pytest.raises(IndexError):
        store.batch([6])
    part = store.subset([5, 1])
    assert torch.equal(part.images, store.images[[5, 1]]) and part.labels.tolist() == [1, 0]
    assert part.files == (store.files[5], store.files[1])
    assert part.fingerprint not in (store.fingerprint, store.subset([1, 5]).fingerprint)
    assert part.fingerprint == store.subset(torch.tensor([5, 1])).fingerprint
    assert store.to("cpu") is store


def test_fingerprint_is_sha256_of_pixels_then_labels_and_so_is_the_caches(tmp_path, root):
    store = read(photos(tmp_path / "zoo"))
    rows = store.images.transpose(1, 2)
    digest = hashlib.sha256(rows.numpy().tobytes() + store.labels.numpy().tobytes()).hexdigest()
    assert store.fingerprint == digest
    (path,) = caches(root)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("images"), rows)
        assert torch.equal(file.get_tensor("labels"), store.labels)
        assert json.loads(file.metadata()["classes"]) == ["ant", "bee"]
        assert file.metadata()["fingerprint"] == digest
    store.images[0] = 0  # a store may be written into; the cache file stays
    assert read(tmp_path / "zoo").images[0].sum() > 0


def test_a_data_loader_reads_a_store(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    pixels, labels = zip(*DataLoader(store, batch_size=4), strict=True)
    assert torch.equal(torch.cat(pixels), store.images) and torch.equal(torch.cat(labels), store.labels)
    assert images.from_dataset(store.images, 32, progress=False)[0][1] == -1  # no label


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_store_on_a_gpu_and_pinned(tmp_path):
    store = read(photos(tmp_path / "zoo"))
    near, pinned = store.to("cuda"), store.to("cuda", budget=10)
    assert near.images.is_cuda and near.images.transpose(1, 2).is_contiguous()
    assert not pinned.images.is_cuda and pinned.images.is_pinned()
    for one in (near, pinned, store):
        assert torch.equal(one.batch([3, 1], device="cuda").cpu(), store.images[[3, 1]])


# ---- Other people's datasets ------------------------------------------------------------------------------


class HuggingFace:
    """The part of a Hugging Face dataset that is used: dictionaries, and the names of the labels."""

    class Labels:
        names = ["cat", "dog"]

    features = {"label": Labels, "image": None}

    def __len__(self):
        return 4

    def __getitem__(self, row):
        return {"image": picture(row), "label": row % 2}


def test_any_dataset_becomes_a_store():
    pixels, labels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 2, 1, 0, 1])
    read = functools.partial(images.from_dataset, progress=False)
    alone, labelled = read(pixels, 32), read(pixels, 32, labels=labels, name="mine")
    assert torch.equal(alone.images, pixels) and alone.labels is None and alone.classes == ()
    assert labelled.labels.tolist() == labels.tolist() and labelled.classes == ("0", "1", "2")
    assert alone.images.transpose(1, 2).is_contiguous() and alone.fingerprint != labelled.fingerprint
    same = read(TensorDataset(pixels.float() / 255, labels), 32, classes=("a", "b", "c"))
    assert same.fingerprint == labelled.fingerprint and same.classes == ("a", "b", "c")
    theirs = read(HuggingFace(), 16)
    assert theirs.classes == ("cat", "dog") and theirs.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(theirs.images[3].numpy().transpose(1, 0, 2), images.square(picture(3), 16))
    fake = FakeData(6, (3, 40, 50), num_classes=4)  # torchvision's: (PIL image, label)
    assert read(fake, 16).labels.tolist() == [label for _, label in fake]


def test_items_that_are_no_images_are_named():
    pixels = [(picture(0), 0), ("no such file.jpg", 1), (torch.full((3, 8, 8), 2.0), 0)]
    with pytest.warns(UserWarning, match=r"2 of 3 images of dataset list .*image 1 .*image 2 \(ValueError"):
        assert len(images.from_dataset(pixels, 16, progress=False)) == 1
    for nothing in ([], [{"img": picture()}], pixels[1:]):
        with pytest.raises(DataError, match=f"not one of {len(nothing)} images of dataset list"):
            images.from_dataset(nothing, 16, progress=False)


# ---- Decoding -------------------------------------------------------------------------------------------


def test_short_side_is_resized_and_the_centre_kept(tmp_path):
    wide = Image.new("RGB", (90, 30), "blue")
    wide.paste((255, 0, 0), (30, 0, 60, 30))  # red in the middle third
    wide.save(tmp_path / "wide.png")
    wide.rotate(90, expand=True).save(tmp_path / "tall.png")
    tall, broad = upright(read(tmp_path, 16))
    expected = wide.resize((48, 16), Image.Resampling.BILINEAR).crop((16, 0, 32, 16))
    assert np.abs(broad - np.asarray(expected)).max() <= 1
    assert np.abs(tall - np.asarray(expected.rotate(90))).max() <= 1


def test_large_jpeg_decoded_small_equals_decoding_it_whole(tmp_path):
    picture(1, (1200, 1200)).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as file:
        whole = np.asarray(file.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(upright(read(tmp_path))[0] - whole).max() <= 3


def test_grey_cmyk_palette_transparent_16_bit_and_rotated(tmp_path):
    source = picture(5, (32, 32))
    source.convert("L").save(tmp_path / "a_grey.jpg", quality=95)
    source.convert("CMYK").save(tmp_path / "b_cmyk.jpg", quality=95)
    source.quantize(256).save(tmp_path / "c_palette.png")
    ghost = source.convert("RGBA")
    ghost.putalpha(0)
    ghost.save(tmp_path / "d_transparent.png")
    deep = (np.asarray(source.convert("L")).astype(np.uint16) << 8) + 7
    Image.fromarray(deep).save(tmp_path / "e_deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    source.rotate(90).save(tmp_path / "f_turned.jpg", exif=exif, quality=95)
    store = read(tmp_path)
    grey, cmyk, palette, ghost, deep, turned = upright(store)
    colour, plain = np.asarray(source).astype(int), np.asarray(source.convert("L")).astype(int)[..., None]
    assert np.abs(grey - plain).mean() < 3 and (grey[..., 0] == grey[..., 2]).all()
    assert np.abs(cmyk - colour).mean() < 6
    assert np.abs(palette - colour).mean() < 12
    assert (ghost == 255).all()  # on white, not on whatever lies below
    assert np.abs(deep - plain).max() <= 1
    assert np.abs(turned - colour).mean() < 4
    assert store.labels is None and store.skipped == ()


def test_damaged_files_are_named_counted_and_left_out(tmp_path, root):
    photos(tmp_path / "zoo")
    truncated(tmp_path / "zoo" / "bee" / 'bro(ken "é漢.jpg')
    (tmp_path / "zoo" / "ant" / "text.jpg").write_text("no image")
    for _ in range(2):  # and again from the cache
        with pytest.warns(UserWarning, match=r"2 of 8 images .* left out: .*text\.jpg .*bro\(ken"):
            store = read(tmp_path / "zoo")
        assert store.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(store.skipped) == 2
        assert store.files == read(photos(tmp_path / "other")).files
    assert store.skipped[1].startswith(os.path.join("bee", 'bro(ken "é漢.jpg') + " (")
    assert not litter(root)


# ---- Folders --------------------------------------------------------------------------------------------


def test_empty_missing_and_undecodable_folders(tmp_path, root):
    with pytest.raises(DataError, match="not a folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "zoo" / "ant").mkdir(parents=True)
    for place in (tmp_path / "zoo" / "ant", tmp_path / "zoo"):
        with pytest.raises(DataError, match="no images in .*CLASS"):
            read(place)
    truncated(tmp_path / "zoo" / "ant" / "only.jpg")
    with pytest.raises(DataError, match=r"not one of 1 images .*only\.jpg"):
        read(tmp_path / "zoo")
    assert not litter(root) and not caches(root)


def test_class_folder_without_images_keeps_its_number(tmp_path):
    photos(tmp_path / "zoo", ("ant", "cat"))
    assert read(tmp_path / "zoo").labels.tolist() == [0, 0, 0, 1, 1, 1]
    (tmp_path / "zoo" / "bee").mkdir()  # and the cache file is out of date
    store = read(tmp_path / "zoo")
    assert store.classes == ("ant", "bee", "cat") and store.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_hidden_files_depth_and_images_without_classes(tmp_path):
    photos(tmp_path / "zoo" / "deep" / "deeper", ("ant",))
    (tmp_path / "zoo" / "__MACOSX").mkdir()
    (tmp_path / "zoo" / "deep" / "._0.jpg").write_text("left by another system")
    assert read(tmp_path / "zoo").classes == ("deep",) and len(read(tmp_path / "zoo")) == 3
    for name in ("a.png", "b.png", "c.png", "d.png"):
        picture().save(tmp_path / "zoo" / name)
    with pytest.warns(UserWarning, match="no labels: 4 lie directly in it, 3 in folders"):
        store = read(tmp_path / "zoo")
    assert store.labels is None and store.classes == () and len(store) == 7


def test_a_changed_folder_is_decoded_again_and_a_limit_is_spread(tmp_path):
    before = read(photos(tmp_path / "zoo"))
    picture(99).save(tmp_path / "zoo" / "ant" / "new.jpg")
    after = read(tmp_path / "zoo")
    assert (len(before), len(after)) == (6, 7) and before.fingerprint != after.fingerprint
    few = read(tmp_path / "zoo", limit=3)
    assert few.files == tuple(after.files[i] for i in (0, 2, 4))
    assert torch.equal(few.images, after.images[[0, 2, 4]]) and few.labels.tolist() == [0, 0, 1]


def test_folder_by_name_with_splits(tmp_path):
    photos(tmp_path / "zoo" / "train", each=4)
    photos(tmp_path / "zoo" / "val", each=1)
    name = str(tmp_path / "zoo")
    sizes = [
        len(images.load(name, split, 16, progress=False)) for split in ("pretrain", "train", "test", "val")
    ]
    assert sizes == [8, 8, 2, 2]
    with pytest.raises(DataError, match="the split .test."):  # never the training images under another name
        images.load(str(tmp_path / "zoo" / "train"), "test", 16)


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (dict(name="imagenete"), "'imagenete' is not known; choose one of: imagenette, .* or a folder"),
        (dict(name="imagenette", split="validation"), "no split 'validation'; choose one of: train, val"),
        (dict(name="shapes", limit=0), "at least one"),
        *(
            (dict(name="shapes", size=size), "from 8 to 1024")
            for size in (0, 7, 4096, 64.0, "64", True, None)
        ),
    ],
    ids=str,
)
def test_wrong_names_and_numbers_are_answered_with_the_right_ones(ask, answer):
    with pytest.raises(DataError, match=answer):
        images.load(**ask)


# ---- Roots and cache files --------------------------------------------------------------------------------


def test_data_root(tmp_path, monkeypatch, root):
    assert images.data_root() == root
    monkeypatch.setenv("SSL_LESSONS_DATA", __file__)
    with pytest.raises(DataError, match="name a folder"):
        images.data_root()
    monkeypatch.delenv("SSL_LESSONS_DATA")
    for name in ("notebooks/grids", "ssl_lessons"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "grids")
    assert images.data_root() == tmp_path / "data"


def test_a_root_that_cannot_be_written_may_hold_the_archive_alone(tmp_path, root, small_archive, monkeypatch):
    small_archive.rename(root / small_archive.name)
    access = os.access  # for a user without rights, whoever runs the test
    monkeypatch.setattr(os, "access", lambda path, mode: root not in Path(path).parents and path != root)
    monkeypatch.setattr(Path, "mkdir", functools.partialmethod(_mkdir_outside, root, Path.mkdir))
    store = get("test", download=False)
    assert access(root, os.R_OK) and len(store) == 20
    assert images.cache_root() == tmp_path / "xdg" / "ssl-lessons"
    assert [one.name for one in root.iterdir()] == [small_archive.name]
    assert (images.cache_root() / "imagenette2-160").is_dir() and len(caches(root)) == 0


def _mkdir_outside(self, root, mkdir, *arguments, **options):
    if root in self.parents:
        raise PermissionError(f"{self} cannot be made")
    mkdir(self, *arguments, **options)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "header"])
def test_damaged_cache_file_is_noticed_and_built_again(tmp_path, root, damage):
    good = read(photos(tmp_path / "zoo"))
    (path,) = caches(root)
    data = path.read_bytes()
    damaged = {
        "cut": data[:-100],
        "garbage": b"\0" * len(data),
        "empty": b"",
        "header": b"\xff" * 8 + data[8:],
    }
    path.unlink()  # the open store keeps the old file
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="damaged"):
        again = read(tmp_path / "zoo")
    assert again.fingerprint == good.fingerprint and torch.equal(again.images, good.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path / "zoo")


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_two_processes_build_the_same_cache_at_once(tmp_path, root):
    photos(tmp_path / "zoo", each=150)
    code = """
import sys
from ssl_lessons import images
write = images._write
def counted(*arguments):
    print("wrote", flush=True)
    write(*arguments)
images._write = counted
print("ready", flush=True)
input()
print(images.folder(sys.argv[1], 64, progress=False).fingerprint)
"""
    both = [run(code, tmp_path / "zoo", stdin=subprocess.PIPE) for _ in range(2)]
    assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    answers = [one.communicate(timeout=90)[0] for one in both]
    assert len({out.split()[-1] for out in answers}) == 1
    assert sum(out.count("wrote") for out in answers) == 1  # the other one waited and read
    assert len(caches(root)) == 1


def test_a_build_that_was_killed_or_ran_out_of_disk_is_no_obstacle(tmp_path, root):
    photos(tmp_path / "zoo", each=5)
    code = """
import os, resource, sys
from ssl_lessons import images
if sys.argv[2] == "killed":
    images.save_file = lambda *_: os.kill(os.getpid(), 9)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # the system refuses to write past 10 kB
images.folder(sys.argv[1], 32, progress=False)
"""
    for kind in ("killed", "full"):
        dead = run(code, tmp_path / "zoo", kind)
        _, err = dead.communicate(timeout=60)
        assert dead.returncode == (-9 if kind == "killed" else 1) and not caches(root)
    assert "File too large" in err
    assert len(read(tmp_path / "zoo")) == 10


# ---- Shapes and STL-10 ----------------------------------------------------------------------------------


def test_shapes_roles_and_limit(monkeypatch):
    monkeypatch.setattr(images, "SHAPES", {"train": (60, 0), "test": (30, 1)})
    train, test = (images.load("shapes", split, 16, progress=False) for split in ("pretrain", "test"))
    assert (len(train), train.split, len(test), test.split) == (60, "train", 30, "test")
    assert train.classes == images.CATALOGUE["shapes"].classes and "seed=0" in train.origin
    assert torch.bincount(test.labels).tolist() == [3] * 10
    few = images.load("shapes", "train", 16, limit=20, progress=False)
    assert len(few) == 20 and torch.equal(few.images[1], train.images[3])
    assert len(images.load("shapes", "train", 16, limit=1000, progress=False)) == 60


def test_stl10_is_upright_and_zero_based(root, monkeypatch):
    place, pictures = root / "stl10_binary", {}
    place.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        pictures[split] = rng.integers(
            0, 256, (count, 96, 96, 3), dtype=np.uint8
        )  # (N, row, column, channel)
        pictures[split].transpose(0, 3, 2, 1).tofile(place / f"{split}_X.bin")  # (N, channel, column, row)
        if split != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(place / f"{split}_y.bin")
    with pytest.raises(DataError, match="corrupted.* remove .*stl10_binary"):  # torchvision's own checksums
        images.load("stl10", "train", 96)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    for split, native in (("pretrain", "unlabeled"), ("train", "train"), ("test", "test")):
        store = images.load("stl10", split, 96, progress=False)
        assert np.array_equal(upright(store), pictures[native])
        expected = None if native == "unlabeled" else (np.arange(len(store)) % 10).tolist()
        assert (None if store.labels is None else store.labels.tolist()) == expected
    small = images.load("stl10", "train", 48, limit=7, progress=False)
    theirs = Image.fromarray(pictures["train"][5]).resize((48, 48), Image.Resampling.BILINEAR)
    assert len(small) == 7 and np.abs(upright(small)[1] - np.asarray(theirs)).max() <= 1


# ---- Archives: download, checksums, unpacking -------------------------------------------------------------


@pytest.fixture
def small_archive(tmp_path):
    """imagenette2-160.tgz in small: the official layout, two images a class and split."""
    tree = tmp_path / "made" / "imagenette2-160"
    for split in ("train", "val"):
        photos(tree / split, Imagenette._WNID_TO_CLASS, each=2)
    (tree / "noise.bin").write_bytes(np.random.default_rng(0).bytes(300_000))  # some length to interrupt
    path = tmp_path / "made" / "imagenette2-160.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "imagenette2-160")
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file; `cut` ends answers after so many bytes, `ranges` tells whether it knows Range."""

    content, ranges, cut, asked = b"", True, [], None

    def do_GET(self):
        self.asked.append(self.headers["Range"])
        first = int(self.headers["Range"][6:-1]) if self.ranges else 0
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

        def start(md5=None, **options):
            content = small_archive.read_bytes()
            handler = type("Mine", (Handler,), {"content": content, "asked": [], "cut": [], **options})
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
            stack.callback(server.shutdown)
            url = f"http://127.0.0.1:{server.server_port}/imagenette2-160.tgz"
            monkeypatch.setitem(ARCHIVES, 160, (url, md5 or hashlib.md5(content).hexdigest()))
            return handler

        yield start


ARCHIVES = images.CATALOGUE["imagenette"].archives


def get(split="train", **options):
    return images.load("imagenette", split, 32, progress=False, **options)


def test_download_unpack_decode(serve, root, capfd):
    server = serve()
    store = get()
    assert len(store) == 20 and store.classes[:2] == ("tench", "English springer")
    assert store.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert store.origin.endswith("the official file") and "not" not in store.origin
    assert get("test").split == "val" and len(server.asked) == 1
    assert not litter(root) and capfd.readouterr().out == ""


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_goes_on_where_it_stopped(serve, root, ranges):
    server = serve(cut=[100_000], ranges=ranges)  # without ranges it starts again
    with pytest.raises(DataError, match="ended .* bytes early.* next call goes on"):
        get()
    assert (root / ".imagenette2-160.tgz.part").stat().st_size == 100_000
    assert len(get()) == 20 and server.asked == ["bytes=0-", "bytes=100000-"]
    assert not litter(root)


def test_part_that_is_already_whole(serve, root, small_archive):
    server = serve()
    (root / ".imagenette2-160.tgz.part").write_bytes(small_archive.read_bytes())
    assert len(get()) == 20 and server.asked == []


def test_wrong_checksum_is_set_aside_and_can_be_accepted_by_hand(serve, root):
    serve(md5="0" * 32)
    wrong = root / "imagenette2-160.tgz.wrong"
    with pytest.raises(DataError, match=r"arrived with md5 \w{32} instead of 0{32}.*set aside as .*\.wrong"):
        get()
    wrong.rename(root / "imagenette2-160.tgz")
    sha256 = hashlib.sha256((root / "imagenette2-160.tgz").read_bytes()).hexdigest()
    assert get().origin == f"imagenette2-160.tgz (sha256 {sha256[:16]}), not the official file"


def test_without_network_the_error_says_which_file_to_put_where(monkeypatch, root):
    url = "http://127.0.0.1:9/imagenette2-160.tgz"  # nobody listens there
    monkeypatch.setitem(ARCHIVES, 160, (url, ""))
    for options in ({}, {"download": False}):
        with pytest.raises(DataError) as caught:
            get(**options)
        for part in (url, str(root / "imagenette2-160.tgz"), "SSL_LESSONS_DATA", "shapes"):
            assert part in str(caught.value)
    assert not litter(root)


def test_folder_unpacked_by_hand_and_one_that_lacks_classes(small_archive, root):
    (root / small_archive.name).write_bytes(small_archive.read_bytes())
    first = get(download=False)
    assert "not the official file" in first.origin
    (root / "imagenette2-160" / ".ssl_lessons.json").unlink()  # as if unpacked by hand
    second = get(download=False)
    assert "by hand" in second.origin and second.fingerprint == first.fingerprint
    for one in (root / "imagenette2-160" / "val" / "n01440764").iterdir():
        one.unlink()
    with pytest.raises(DataError, match="n01440764.* unpacked again"):
        get("val")


def test_damaged_archive(small_archive, root):
    data = small_archive.read_bytes()
    packed = root / small_archive.name
    for damaged in (data[: len(data) // 2], b"no archive", b""):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"could not unpack .*imagenette2-160\.tgz .* remove it"):
            get(download=False)
        assert not litter(root) and not (root / "imagenette2-160").exists()


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EVIL = [
    tarfile.TarInfo("../x"),
    tarfile.TarInfo("imagenette2-160/../../x"),
    tarfile.TarInfo("elsewhere/x"),
    tarfile.TarInfo("/tmp/ssl-lessons-evil"),
    link("imagenette2-160/x", "/etc/passwd"),
    link("imagenette2-160/x", "../../x", tarfile.LNKTYPE),
    link("imagenette2-160/x", "", tarfile.FIFOTYPE),
]


@pytest.mark.parametrize("evil", EVIL, ids=lambda member: f"{member.name}{member.type.decode()}")
def test_nothing_leaves_a_malicious_archive(evil, root):
    with tarfile.open(root / "imagenette2-160.tgz", "w:gz") as tar:
        good = tarfile.TarInfo("imagenette2-160/good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        tar.addfile(evil)
    with pytest.raises(
        DataError
    ):  # refused; what would land beside the folder is dropped, and classes are missing
        get(download=False)
    assert (
        not litter(root) and not (root / "elsewhere").exists() and not (root / "imagenette2-160/x").exists()
    )
    assert not (root.parent / "x").exists() and not Path("/tmp/ssl-lessons-evil").exists()


def test_catalogue_is_complete_and_agrees_with_the_page():
    page = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    for entry in images.CATALOGUE.values():
        assert len(entry.classes) == 10
        for url, md5 in entry.archives.values():
            (line,) = (line for line in page.splitlines() if f"| {url} |" in line)
            assert line.startswith(f"| `{url.rpartition('/')[2]}` |") and line.endswith(f"| `{md5}` |")


def test_a_png_is_turned_by_what_its_notes_say(tmp_path):
    """Orientation 3 in XMP, a text chunk of the PNG: the white upper half is to be the lower one."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    notes = PngInfo()
    words = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
    notes.add_itxt("XML:com.adobe.xmp", words)
    Image.fromarray(pixels).save(tmp_path / "turned.png", pnginfo=notes)
    upright = images.square(tmp_path / "turned.png", 8)
    assert upright[0].max() == 0 and upright[-1].min() == 255


def test_a_size_that_is_no_number_is_a_sentence():
    for size in ("160", None, True, 0):
        with pytest.raises(DataError, match="whole number of pixels"):
            images.fetch("imagenette", size, download=False)


def test_our_own_files_are_no_class_in_capitals_either(tmp_path):
    for name in ("a/1.png", "run/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.SAFETENSORS").touch()
    assert images.folder(tmp_path, 16, progress=False).classes == ("a", "run")
