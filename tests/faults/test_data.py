"""Folders, pictures, archives and caches as people have them: right, or one sentence, never in silence."""

import gzip
import io
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ssl_lessons import SimSiam, images
from ssl_lessons.evaluate import labels_of, place_of
from ssl_lessons.images import DataError, ImageStore
from ssl_lessons.networks import build
from ssl_lessons.records import Run

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def zoo(tmp_path):
    return photos(tmp_path / "zoo")


def picture(seed=0, size=(40, 30)):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def photos(place, classes=("ant", "bee"), each=2, first=0):
    """CLASS/0.png and so on, every picture another one; returns `place`."""
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture(first + 10 * label + i).save(place / name / f"{i}.png")
    return place


def read(path, size=16, **options):
    """The store of a folder, and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        store = images.folder(path, size, progress=False, **options)
    return store, "\n".join(str(one.message) for one in said)


def load(path, split="train", size=16):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return images.load(str(path), split, size, progress=False)


def same(pixels, source, tolerance=1):
    """Whether uint8 (3, S, S) are those of a picture."""
    wanted = np.asarray(source.convert("RGB").resize(pixels.shape[1:], Image.Resampling.BILINEAR)).astype(int)
    return np.abs(pixels.permute(1, 2, 0).numpy() - wanted).max() <= tolerance


# ---- Links, and what is no file ---------------------------------------------------------------------------


def link_to_a_class(zoo):
    photos(zoo.parent / "elsewhere", ["cat"])
    (zoo / "cat").symlink_to(zoo.parent / "elsewhere" / "cat", target_is_directory=True)


def link_inside_a_class(zoo):
    photos(zoo.parent / "elsewhere", ["cat"])
    (zoo / "bee" / "more").symlink_to(zoo.parent / "elsewhere", target_is_directory=True)


def link_to_a_file(zoo):
    picture(7).save(zoo.parent / "far.png")
    (zoo / "bee" / "far.png").symlink_to(zoo.parent / "far.png")


def link_to_the_root(zoo):
    (zoo / "ant" / "up").symlink_to(zoo, target_is_directory=True)


def link_to_itself(zoo):
    (zoo / "ant" / "me").symlink_to(zoo / "ant" / "me")


def link_to_its_own_folder(zoo):
    (zoo / "ant" / "here").symlink_to(".", target_is_directory=True)


def links_in_a_ring(zoo):
    (zoo / "ant" / "x").mkdir()
    (zoo / "ant" / "y").mkdir()
    (zoo / "ant" / "x" / "next").symlink_to(zoo / "ant" / "y", target_is_directory=True)
    (zoo / "ant" / "y" / "next").symlink_to(zoo / "ant" / "x", target_is_directory=True)


def many_links_to_one_folder(zoo):
    for level in range(12):  # 2 ** 12 ways to the last
        (zoo.parent / f"level{level}").mkdir()
        for name in "ab":
            target = zoo.parent / f"level{level + 1}"
            (zoo.parent / f"level{level}" / name).symlink_to(target, target_is_directory=True)
    photos(zoo.parent, ["level12"])
    (zoo / "bee" / "levels").symlink_to(zoo.parent / "level0", target_is_directory=True)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (link_to_a_class, [2, 2, 2]),
        (link_inside_a_class, [2, 4]),
        (link_to_a_file, [2, 3]),
        (link_to_the_root, [2, 2]),
        (link_to_itself, [2, 2]),
        (link_to_its_own_folder, [2, 2]),
        (links_in_a_ring, [2, 2]),
        (many_links_to_one_folder, [2, 4]),
    ],
)
def test_links_are_followed_once(fault, zoo, change, counts):
    change(zoo)
    store, _ = read(zoo)
    right = store.labels.bincount().tolist() == counts and len(store.files) == len(store)
    fault("links").right(right, message=store.files)


@pytest.mark.parametrize("change", [link_to_a_class, link_inside_a_class, link_to_a_file])
def test_what_lies_behind_a_link_is_watched(fault, zoo, change):
    change(zoo)
    before, _ = read(zoo)
    behind = zoo.parent / "far.png"
    picture(99).save(behind if behind.exists() else zoo.parent / "elsewhere" / "cat" / "0.png")
    after, _ = read(zoo)
    fault("links").right(before.fingerprint != after.fingerprint)


def a_dangling_link(path):
    path.symlink_to("nowhere.png")


def a_fifo(path):
    os.mkfifo(path)


def a_device(path):
    path.symlink_to("/dev/zero")


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def an_empty_file(path):
    path.touch()


def a_text(path):
    path.write_text("no picture")


@pytest.mark.parametrize("make", [a_dangling_link, a_fifo, a_device, a_socket, an_empty_file, a_text])
def test_what_is_no_picture_file_is_named_and_hangs_nothing(fault, zoo, make):
    make(zoo / "ant" / "odd.png")
    store, said = read(zoo)
    right = "odd.png (" in said and "1 of 5" in said and store.labels.tolist() == [0, 0, 1, 1]
    fault("no files").right(right and len(store.files) == 4, message=said)


NAMES = {
    "not UTF-8": b"caf\xe9",
    "escape code": b"\x1b[2J\x1b]0;title\x07red",
    "line break": b"one\ntwo",
    "backslash": b"a\\b",
    "brackets": b"odd (1) (2)",
    "235 letters": b"n" * 235,
    "accents": "é漢字🐝".encode(),
    "spaces": b" a b ",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("where", ["root", "class", "file"])
def test_odd_names(fault, tmp_path, capsys, name, where):
    name = os.fsdecode(name)
    place = photos(
        tmp_path / (name if where == "root" else "zoo"), [name if where == "class" else "ant", "b"]
    )
    broken = place / "b" / f"{name if where == 'file' else 'x'}.png"
    broken.write_bytes(b"damaged")
    store, said = read(place)
    again, _ = read(place)  # and from its cache
    print(store.name, store.origin, store.classes, store.skipped, said)
    shown = capsys.readouterr().out
    right = sorted(store.labels.tolist()) == [0, 0, 1, 1] and again.fingerprint == store.fingerprint
    right = right and len(store.skipped) == 1 and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown)
    right = right and all((place / file).exists() for file in store.files) and broken.name not in store.files
    fault("odd names").right(right and len(store.files) == 4, message=ascii(shown))


def test_of_two_files_that_print_alike_one_is_damaged(fault, zoo):
    (zoo / "ant" / "a\x1b.png").write_bytes(b"damaged")
    picture(7).save(zoo / "ant" / "a\\x1b.png")
    stores = [read(zoo)[0] for _ in range(2)]
    left = [store.files[:3] == ("ant/0.png", "ant/1.png", "ant/a\\x1b.png") for store in stores]
    fault("odd names").right(all(left) and stores[0].fingerprint == stores[1].fingerprint)


@pytest.mark.parametrize("split", ["n" * 240, "é" * 120, "a b:c", "cafe\u0301"])
def test_splits_of_odd_names(fault, tmp_path, split):
    photos(tmp_path / "zoo" / split)
    store = load(tmp_path / "zoo", split)
    fault("odd names").right(len(store) == 4 and store.split == split)


# ---- Splits, classes, and what lies beside them -----------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "split", "taken"),
    [
        (("Train", "Val"), "train", "Train"),
        (("Train", "Val"), "test", "Val"),
        (("TRAIN", "TEST"), "pretrain", "TRAIN"),
        (("training", "validation"), "test", "validation"),
        (("train", "valid"), "val", "valid"),
        (("train", "val", "test"), "test", "test"),
        (("Unlabeled", "train", "test"), "pretrain", "Unlabeled"),
        (("train", "test", "extra"), "extra", "extra"),
        (("train",), "train", "train"),
        (("train2017", "val2017"), "train", "train2017"),
        (("train2017", "val2017"), "val2017", "val2017"),
        (("train-images", "test-images"), "test", "test-images"),
        (("Train_1", "test_1"), "pretrain", "Train_1"),
        (("train", "train_extra", "test"), "train", "train"),
        (("train", "train_extra", "test"), "train_extra", "train_extra"),
    ],
    ids=str,
)
def test_a_split_by_its_name_in_any_case(fault, tmp_path, folders, split, taken):
    for i, name in enumerate(folders):
        photos(tmp_path / "zoo" / name, first=100 * i)
    store = load(tmp_path / "zoo", split)
    wanted, _ = read(tmp_path / "zoo" / taken)
    fault("splits").right(store.fingerprint == wanted.fingerprint and store.classes == ("ant", "bee"))


@pytest.mark.parametrize(
    ("folders", "split", "says"),
    [
        (("Train", "Val"), None, "Train, Val"),
        (("training", "dev"), None, "load"),
        (("train", "test", "extra"), None, "test, train"),
        (("val", "test"), "train", "val"),
        (("train", "val"), "tset", "tset"),
        (("train", "bus", "car"), "train", "bus"),  # a class, or a split?
        (("ant", "bee"), "test", "test"),
        (("ant", "bee"), "..", ".."),
        (("ant", "bee"), "", "''"),
        (("ant", "none"), 3, "split 3"),
        (("train2017", "val2017"), None, "train2017, val2017"),
        (("train-images", "val-images"), None, "train-images, val-images"),
        (("train_1", "train_2", "test_1"), "train", "train_1"),
        (("data/train", "data/test"), None, ("data has the splits test, train", "load")),
        (("data/train", "data/test"), "pretrain", ("data has the splits test, train", "load")),
        (("a/b/Train", "a/b/Val", "c"), None, "Train, Val"),
        (("ant/val", "ant/test", "bee/val", "bee/test"), None, "test, val"),
    ],
    ids=str,
)
def test_splits_are_no_classes(fault, tmp_path, folders, split, says):
    for name in folders:
        photos(tmp_path / "zoo" / name, ["x", "y"])
    with fault("splits").refused(DataError, says=says):
        read(tmp_path / "zoo") if split is None else load(tmp_path / "zoo", split)


def test_a_split_that_is_no_text(fault, zoo):
    (zoo / "none").mkdir()
    for name, split in ((str(zoo), None), ("shapes", ["train"]), (None, "train"), (b"shapes", "train")):
        with fault("splits").refused(DataError, says=(repr(name), repr(split))):
            images.load(name, split)


def test_a_class_may_have_one_folder_that_is_called_like_a_split(fault, zoo):
    photos(zoo / "vehicle", ["train"])
    store, _ = read(zoo)
    fault("splits").right(store.classes == ("ant", "bee", "vehicle") and len(store) == 6)


ALIKE = (
    ("bus", "car", "train"),
    ("control", "test"),
    ("dev", "ops"),
    ("bullet_train", "test"),
    ("tester", "trainer"),
)


@pytest.mark.parametrize("classes", ALIKE, ids=str)
def test_a_class_may_be_called_like_a_split(fault, tmp_path, classes):
    store, _ = read(photos(tmp_path / "zoo", classes))
    fault("splits").right(store.classes == classes and len(store) == 2 * len(classes))


@pytest.mark.parametrize("made", [(), ("cat",)], ids=str)
def test_classes_of_two_splits_are_matched_by_name(fault, tmp_path, made):
    photos(tmp_path / "zoo" / "train", ["ant", "bee", "cat"])
    photos(tmp_path / "zoo" / "test", ["bee", "cat"] if made else ["ant", "cat"])
    train, test = load(tmp_path / "zoo", "train"), load(tmp_path / "zoo", "test")
    wanted = [1, 1, 2, 2] if made else [0, 0, 2, 2]
    fault("classes").right(labels_of(test, train.classes).tolist() == wanted)


def test_classes_that_only_the_test_split_has(fault, tmp_path):
    photos(tmp_path / "zoo" / "train", ["ant"])
    photos(tmp_path / "zoo" / "test", ["ant", "bee"])
    with fault("classes").refused(ValueError, says="bee"):
        labels_of(load(tmp_path / "zoo", "test"), load(tmp_path / "zoo", "train").classes)


def test_accents_written_in_two_ways_are_one_class(fault, tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    photos(tmp_path / "zoo" / "train", ["b", composed])
    photos(tmp_path / "zoo" / "test", ["b", apart])
    train, test = load(tmp_path / "zoo", "train"), load(tmp_path / "zoo", "test")
    right = train.classes == test.classes == ("b", composed) and apart in test.files[2]
    fault("classes").right(right and labels_of(test, train.classes).tolist() == [0, 0, 1, 1])


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("a\x1b", "a\\x1b")], ids=ascii)
def test_folders_whose_names_print_alike(fault, tmp_path, names):
    with fault("classes").refused(DataError, says=("two classes", "rename")):
        read(photos(tmp_path / "zoo", names))


def test_test_images_that_are_training_images(fault, tmp_path):
    train, _ = read(photos(tmp_path / "train"))
    picture(99).save(tmp_path / "train" / "bee" / "9.png")
    test, _ = read(tmp_path / "train")
    fault("leaks").right(
        test.copies(train).tolist() == [0, 1, 2, 3] and train.copies(test.subset([4])).numel() == 0
    )


@pytest.mark.parametrize("name", ["cover.png", "Thumbs.jpg"])
def test_a_stray_picture_drops_no_labels(fault, zoo, name):
    picture(9).save(zoo / name)
    store, said = read(zoo)
    fault("strays").right(store.labels.tolist() == [0, 0, 1, 1] and name in said, message=said)


def test_pictures_without_classes_beside_a_folder(fault, zoo):
    for i in range(5):
        picture(50 + i).save(zoo / f"{i}.png")
    store, said = read(zoo)
    fault("strays").right(store.labels is None and len(store) == 9 and "no labels" in said, message=said)


@pytest.mark.parametrize("name", ["notes.txt", "0.heic", "scan.dcm", "film.mpg", "figure.eps", "noending"])
def test_files_that_are_passed_over_are_named(fault, zoo, name):
    (zoo / "ant" / name).write_bytes(b"something")
    store, said = read(zoo)
    right = (
        len(store) == 4 and f"{os.path.join('ant', name)} (not a picture" in said and len(store.skipped) == 1
    )
    again, said = read(zoo)
    fault("passed over").right(right and name in said and again.skipped == store.skipped, message=said)


def test_all_are_counted(fault, zoo):
    for i in range(30):
        (zoo / "bee" / f"{i}.txt").touch()
    store, said = read(zoo)
    fault("passed over").right("30 of 34" in said and len(store.skipped) == 30, message=said)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_class_without_images_is_named_and_keeps_its_number(fault, zoo, inside):
    (zoo / "aardvark" / inside).mkdir(parents=True)
    store, said = read(zoo)
    right = store.labels.tolist() == [1, 1, 2, 2] and "aardvark (a class without images)" in said
    fault("passed over").right(right, message=said)


@pytest.mark.parametrize(
    "path",
    [
        "data/cache/x-16.safetensors",
        "runs/first/record.json",
        "runs/grid/one/record.json",
        "old/cache/x.safetensors",
    ],
)
def test_our_own_folders_are_no_classes(fault, zoo, monkeypatch, path):
    monkeypatch.setenv("SSL_LESSONS_DATA", str(zoo / "data"))
    (zoo / path).parent.mkdir(parents=True)
    (zoo / path).write_text("{}")
    if "record" in path:
        picture(5).save((zoo / path).parent / "figure.png")
    first, _ = read(zoo)
    again, _ = read(zoo)  # now with a cache inside
    right = first.classes == again.classes == ("ant", "bee") and len(again) == 4
    fault("own folders").right(right and first.fingerprint == again.fingerprint)


@pytest.mark.parametrize(
    "ending",
    ["jfif", "avif", "tga", "jpe", "jp2", "pnm", "ico", "dib", "apng", "sgi", "pcx", "PNG", "JPG", "qoi"],
)
def test_endings_that_are_pictures(fault, tmp_path, ending):
    kind = images.Image.registered_extensions()[f".{ending.lower()}"]
    if kind not in images.Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    picture(3, (32, 32)).save(tmp_path / f"one.{ending}", kind)
    store, said = read(tmp_path)
    fault("endings").right(len(store) == 1 and same(store.images[0], picture(3, (32, 32)), 40), message=said)


# ---- Depths, metadata, size -------------------------------------------------------------------------------

GREY = np.asarray(picture(5, (16, 16)).convert("L"))  # darkest 0 to 60, brightest above 128


def png(rows, depth, colour):
    """A PNG of any depth: rows uint8 or big-endian uint16 (H, W) or (H, W, channels)."""
    height, width = rows.shape[:2]
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def deep(bits, colour):
    rows = (GREY.astype(np.uint32) << 8 >> (16 - bits)).astype(">u2")
    return png(np.repeat(rows[..., None], {0: 1, 2: 3, 4: 2, 6: 4}[colour], -1), 16, colour)


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "colour"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_in_16(fault, tmp_path, bits, colour):
    (tmp_path / "deep.png").write_bytes(deep(bits, colour))
    if bits == 16:
        store, _ = read(tmp_path)
        fault("depths").right(same(store.images[0], Image.fromarray(GREY)))
        return
    with fault("depths").refused(DataError, says=("deep.png", "16 bits")):
        read(tmp_path)


FLOATS = {
    "in [0, 1]": (GREY / 255, True),
    "0 to 255": (GREY * 1.0, False),
    "normalised": (GREY / 128 - 1.0, False),
    "NaN": (np.where(GREY > 99, np.nan, GREY / 255), False),
    "infinite": (np.where(GREY > 99, np.inf, GREY / 255), False),
}


@pytest.mark.parametrize(("pixels", "right"), FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("kind", ["file", "tensor", "(H, W, 3)", "(H, W, 1)", "(H, W)", "half"])
def test_floats(fault, tmp_path, pixels, right, kind):
    def store():
        if kind == "file":
            Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "float.tiff")
            return read(tmp_path)[0]
        if kind == "tensor":
            data = torch.tensor(pixels, dtype=torch.float32).expand(1, 3, 16, 16)
        elif kind == "(H, W)":
            data = [pixels]
        else:
            channels = 1 if kind == "(H, W, 1)" else 3
            data = np.repeat(pixels[None, ..., None], channels, -1)
            data = data.astype(np.float16) if kind == "half" else data
        return images.from_dataset(data, 16, progress=False)

    if right:
        fault("depths").right(same(store().images[0], Image.fromarray(GREY)))
        return
    with fault("depths").refused(DataError, says="float pixels"):
        store()


WHOLE = {
    "16 bits": (GREY.astype(np.int32) << 8, True),
    "8 bits": (GREY.astype(np.int32), False),
    "24 bits": (GREY.astype(np.int32) << 16, False),
    "negative": (GREY.astype(np.int32) * 256 - 30_000, False),
}


@pytest.mark.parametrize(("pixels", "right"), WHOLE.values(), ids=WHOLE)
def test_mode_i(fault, tmp_path, pixels, right):
    Image.fromarray(pixels).save(tmp_path / "whole.tiff")
    if right:
        fault("depths").right(same(read(tmp_path)[0].images[0], Image.fromarray(GREY)))
        return
    with fault("depths").refused(DataError, says=("whole.tiff", "16 bits")):
        read(tmp_path)


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_whole_numbers_below_0_do_not_wrap(fault, kind):
    with fault("depths").refused(DataError, says="-1"):
        images.from_dataset([np.where(GREY > 99, kind(-1), GREY)], 16, progress=False)


def test_what_16_bits_call_transparent_is_white(fault, tmp_path):
    data, key = deep(16, 0), int(GREY[3, 3])
    at = data.index(b"IDAT") - 4
    (tmp_path / "clear.png").write_bytes(data[:at] + chunk(b"tRNS", struct.pack(">H", 256 * key)) + data[at:])
    wanted = np.where(key == GREY, 255, GREY)
    fault("depths").right(np.array_equal(read(tmp_path)[0].images[0, 0].numpy(), wanted))


@pytest.mark.parametrize("maximum", [255, 1023, 4095, 65535])
def test_a_file_that_says_what_is_white(fault, tmp_path, maximum):
    rows = (GREY.astype(np.uint32) * maximum // 255).astype(">u2" if maximum > 255 else "u1")
    (tmp_path / "one.pgm").write_bytes(f"P5 16 16 {maximum}\n".encode() + rows.tobytes())
    fault("depths").right(same(read(tmp_path)[0].images[0], Image.fromarray(GREY)))


EXIF = {
    "not TIFF": b"Exif\0\0garbage",
    "cut": b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
    "far offset": b"Exif\0\0MM\0*\x7f\xff\xff\xff",
    "circle": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\x08",
    "orientation 0": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0",
    "orientation 99": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    "orientation in letters": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x03up\0\0\0\0\0\0",
    "two orientations": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x02\0\x63\0\x63\0\0\0\0",
}


@pytest.mark.parametrize("exif", EXIF.values(), ids=EXIF)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_broken_exif_costs_no_picture(fault, tmp_path, exif, kind):
    data = exif if kind == "jpg" else exif[6:]
    picture(4, (32, 32)).save(tmp_path / f"one.{kind}", exif=data, quality=95)
    store, said = read(tmp_path)
    fault("metadata").right(len(store) == 1 and same(store.images[0], picture(4, (32, 32)), 16), message=said)


@pytest.mark.parametrize("turn", range(2, 9))
def test_a_turned_picture_with_other_broken_tags(fault, tmp_path, turn):
    tags = [(0x0112, 3, 1, turn << 16), (0x8769, 4, 1, 0x7FFFFFFF)]
    table = b"".join(struct.pack(">HHII", *tag) for tag in tags)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + table + b"\0\0\0\0"
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(turn, list(Image.Transpose)[0])
    others = {3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    others |= {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    picture(4, (32, 32)).transpose(others.get(turn, undo)).save(tmp_path / "one.jpg", exif=exif, quality=95)
    store, said = read(tmp_path)
    fault("metadata").right(same(store.images[0], picture(4, (32, 32)), 16), message=said)


CHUNKS = {
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", crc=1),
    "text without an end": chunk(b"tEXt", b"no zero byte"),
    "text that is no deflate": chunk(b"zTXt", b"a\0\0garbage"),
    "text that swells": chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 80_000_000)),
    "profile that is none": chunk(b"iCCP", b"a\0\0garbage"),
    "time with a wrong checksum": chunk(b"tIME", b"1234567", crc=1),
    "short resolution": chunk(b"pHYs", b"123"),
    "short gamma": chunk(b"gAMA", b"1"),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", crc=1),
}


@pytest.mark.parametrize("part", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_broken_notes_of_a_png_cost_no_picture(fault, tmp_path, part, where):
    kept = io.BytesIO()
    picture(4, (32, 32)).save(kept, "PNG")
    data = kept.getvalue()
    at = data.index(b"IDAT") - 4 if where == "before" else data.index(b"IEND") - 4
    (tmp_path / "one.png").write_bytes(data[:at] + part + data[at:])
    picture(5).save(tmp_path / "two.png")
    store, said = read(tmp_path)
    fault("metadata").right(len(store) == 2 and same(store.images[0], picture(4, (32, 32))), message=said)


def test_a_huge_jpeg_is_drafted_before_it_is_called_a_bomb(fault, tmp_path):
    small = Image.fromarray(GREY[:2, :2])
    small.resize((14_000, 14_000), Image.Resampling.NEAREST).save(tmp_path / "huge.jpg", quality=20)
    store, said = read(tmp_path)
    fault("bombs").right(
        same(store.images[0], small.resize((16, 16), Image.Resampling.NEAREST), 12), message=said
    )


@pytest.mark.parametrize(("mode", "side"), [("1", 9000), ("L", 20_000), ("RGB", 60_000)])
def test_a_small_file_with_very_many_pixels(fault, tmp_path, mode, side):
    depth, colour, bits = {"1": (1, 0, 1), "L": (8, 0, 8), "RGB": (8, 2, 24)}[mode]
    rows = np.zeros((1, (side * bits + 7) // 8), np.uint8)
    data = png(rows, depth, colour)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(data[:8] + header + data[8 + len(header) :])
    with fault("bombs").refused(DataError, says=("bomb.png", "pixels")):
        read(tmp_path)


def test_a_large_progressive_jpeg(fault, tmp_path):
    Image.new("L", (9000, 9000)).save(tmp_path / "bomb.jpg", progressive=True, quality=20)
    with fault("bombs").refused(DataError, says=("bomb.jpg", "pixels")):
        read(tmp_path)


def test_a_large_png_in_bounded_memory(fault, tmp_path):
    data = png(np.full((4200, 4200, 4), 200, np.uint8), 8, 6)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(data)
    code = "import resource, sys; from ssl_lessons import images; import numpy\n"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "images.folder(sys.argv[1], 16, progress=False)\n"
    code += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=300)
    fault("bombs").right(int(done.stdout) < 450, message=done.stdout + done.stderr)  # 70 MB each, four copies


# ---- Rows and labels --------------------------------------------------------------------------------------


def store_of(labels, classes=("a", "b", "c"), count=6):
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 16, 3, 16)
    return ImageStore(pixels.contiguous().transpose(1, 2), labels, classes, "rows", "train", "print")


@pytest.mark.parametrize(
    ("indices", "rows"),
    [
        ([True, False, False, True, False, False], [0, 3]),
        (torch.arange(6) > 3, [4, 5]),
        (np.arange(6) < 2, [0, 1]),
        (torch.zeros(6, dtype=torch.bool), []),
        ([], []),
        (np.array([2, 2], dtype=np.int16), [2, 2]),
        (torch.tensor([5], dtype=torch.uint8), [5]),
        (range(1, 3), [1, 2]),
        (np.array([1, 2], dtype=np.uint16), [1, 2]),
        (np.array([4], dtype=np.uint64), [4]),
        (torch.tensor([3], dtype=torch.uint32), [3]),
        (pd.Series([True, False] * 3, index=range(6, 0, -1)), [0, 2, 4]),
        (pd.Series([5, 0], index=["x", "y"]), [5, 0]),
    ],
    ids=str,
)
def test_rows(fault, indices, rows):
    store = store_of(torch.tensor([0, 1, 2, 0, 1, 2]))
    part, batch = store.subset(indices), store.batch(indices)
    right = batch[:, 0, 0, 0].tolist() == rows and part.labels.tolist() == [row % 3 for row in rows]
    fault("rows").right(right and torch.equal(part.images, batch))


@pytest.mark.parametrize(
    "indices",
    [
        [0.0, 1.0],
        [True, False],
        torch.ones(7, dtype=torch.bool),
        torch.ones(6, 1, dtype=torch.bool),
        torch.tensor(3),
        torch.tensor(True),
        torch.tensor(1.0),
        torch.tensor([1j]),
        [[0, 1]],
        [6],
        [-1],
        [0, 2**40],
        np.array([0.5]),
        np.array([2**64 - 1], dtype=np.uint64),
        slice(0, 2),
        {0, 1},
        {0: 1},
        (row for row in [0]),
        None,
        "01",
        [None],
        [[0], [1, 2]],
        [2**70],
        pd.Series([True, None] * 3),
    ],
    ids=lambda indices: str(indices).partition(" at 0x")[0],
)
@pytest.mark.parametrize("call", ["batch", "subset"])
def test_rows_that_are_none(fault, indices, call):
    with fault("rows").refused(ValueError, IndexError, says="indices"):
        getattr(store_of(None), call)(indices)


@pytest.mark.parametrize("index", [True, 1.0, "1", torch.tensor(1.5), slice(0, 2), None], ids=str)
def test_one_row_that_is_none(fault, index):
    with fault("rows").refused(TypeError, says="in"):
        store_of(None)[index]


PIXELS = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
LABELS = {
    "out of range": ([0, 1, 2, 1], ("a", "b"), "from 0 to 1"),
    "from 1 on": ([1, 2, 2, 1], ("a", "b"), "from 0 to 1"),
    "some missing": ([0, -1, 1, 0], ("a", "b"), "-1"),
    "some None": ([0, None, 1, 0], ("a", "b"), "-1"),
    "negative": ([0, -7, 1, 0], None, "-7"),
    "floats": ([0.0, 1.0, 0.5, 1.0], None, "0.0"),
    "NaN": ([float("nan")] * 4, None, "nan"),
    "names": (["a", "b", "a", "b"], ("a", "b"), "'a'"),
    "one-hot": (torch.eye(4).tolist(), None, "[1.0"),
    "too few": ([0, 1, 0], None, "3 labels"),
    "too many": ([0, 1, 0, 1, 0], None, "5 labels"),
    "dates": ([20261126] * 4, None, "20261126"),
    "beyond 64 bits": ([2**70] * 4, None, str(2**70)),
    "a mapping": ({0: 1, 1: 0, 2: 1, 3: 1}, None, "{0: 1, 1: 0"),
    "a set": ({0, 1, 2, 3}, None, "{0, 1, 2, 3}"),
    "a number": (3, None, "are 3"),
    "no dimension": (torch.tensor(3), None, "tensor(3)"),
    "text": ("0101", None, "'0101'"),
    "two classes of one name": ([0, 1, 2, 1], ("crane", "crane", "dog"), "crane"),
    "classes in a mapping": ([0, 1, 0, 1], {0: "a", 1: "b"}, "{0: 'a'"),
    "classes in a set": ([0, 1, 0, 1], {"a"}, "{'a'}"),
    "classes as text": ([0, 1, 0, 1], "ab", "'ab'"),
    "a count of classes": ([0, 1, 0, 1], 2, "are 2"),
    "a method": ([0, 1, 0, 1], print, "built-in function print"),
}


@pytest.mark.parametrize(("labels", "classes", "says"), LABELS.values(), ids=LABELS)
def test_labels_that_are_none(fault, labels, classes, says):
    with fault("labels").refused(DataError, says=says):
        images.from_dataset(PIXELS, 16, labels=labels, classes=classes, progress=False)


@pytest.mark.parametrize("own", [False, True], ids=["given", "the dataset's"])
@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        ([3, 5], ("3", "5")),
        (range(2), ("0", "1")),
        (np.array([3, 5]), ("3", "5")),
        (np.array(["a", "b"]), ("a", "b")),
        (pd.Series(["a", "b"], index=[7, 8]), ("a", "b")),
        ({"a": 0, "b": 1}.keys(), ("a", "b")),
        ([("a", "x"), ("b",)], ("a", "b")),
        ([], ("0", "1")),
    ],
    ids=str,
)
def test_classes_as_people_have_them(fault, classes, wanted, own):
    dataset = [(picture(i), i % 2) for i in range(4)]
    if own:
        dataset = type("Own", (list,), {"classes": classes})(dataset)
    store = images.from_dataset(dataset, 16, classes=None if own else classes, progress=False)
    fault("classes").right(store.classes == wanted and store.labels.tolist() == [0, 1, 0, 1])


def test_a_label_of_many_letters_is_cut(fault):
    with pytest.raises(DataError, match="number of a class") as caught:
        images.from_dataset(PIXELS, 16, labels=["a" * 700_000] * 4, progress=False)
    fault("labels").right(len(str(caught.value)) < 400)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([-1] * 4, None),
        ([None] * 4, None),
        (np.array([1, 0, 1, 2], np.uint8), [1, 0, 1, 2]),
        ([True, False] * 2, [1, 0, 1, 0]),
    ],
    ids=str,
)
def test_labels_as_people_have_them(fault, labels, wanted):
    store = images.from_dataset(PIXELS, 16, labels=labels, progress=False)
    found = None if store.labels is None else store.labels.tolist()
    fault("labels").right(found == wanted and len(store.classes) == (max(wanted) + 1 if wanted else 0))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, 2, 0, 1, 3]),
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(6),
        torch.zeros(6, 1).long(),
    ],
    ids=str,
)
def test_labels_of_a_store_made_by_hand(fault, labels):
    with fault("labels").refused(DataError, says="labels of rows"):
        store_of(labels)


@pytest.mark.parametrize(
    "dataset",
    [iter([]), (one for one in "ab"), {"train": PIXELS}, "photos/", [PIXELS.long()], []],
    ids=lambda d: type(d).__name__,
)
def test_datasets_that_are_none(fault, dataset):
    with fault("datasets").refused(DataError, says="dataset"):
        images.from_dataset(dataset, 16, progress=False)


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", True])
def test_limits_that_are_none(fault, zoo, limit):
    with fault("datasets").refused(DataError, says=repr(limit)):
        read(zoo, limit=limit)


@pytest.mark.parametrize("name", ["", "~nouser/photos", "nowhere/", "a\0b", "imagenete"])
def test_names_that_are_none(fault, name):
    with fault("datasets").refused(DataError, says="choose one of"):
        load(name)


# ---- Caches, archives, places -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_a_cache(fault, zoo, root, seed):
    good, _ = read(zoo)
    pixels, labels = good.images.clone(), good.labels.clone()
    (path,) = (root / "cache").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    path.unlink()  # the open store keeps the old file
    draw = random.Random(seed)
    header = 8 + int.from_bytes(data[:8], "little")
    at = draw.randrange(header) if seed % 2 else draw.randrange(header, len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    store, _ = read(zoo)
    right = torch.equal(store.images, pixels) and torch.equal(store.labels, labels)
    fault("caches").right(right and store.files == good.files and store.fingerprint == good.fingerprint)


def swapped(zoo):
    """Two pictures of one size and time change their places, and so their classes."""
    ant, bee = zoo / "ant" / "0.bmp", zoo / "bee" / "0.bmp"
    ant.rename(zoo / "kept")
    bee.rename(ant)
    (zoo / "kept").rename(bee)


def overwritten(zoo):
    """Another picture of the same length, and the clock of the old one."""
    path = zoo / "ant" / "0.bmp"
    before = path.stat()
    picture(99).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_lock_in_a_shared_data_root_is_everybodys(fault, zoo, root):
    read(zoo)
    (lock,) = (root / "cache").glob(".*.lock")
    fault("places").right(lock.stat().st_mode & 0o666 == 0o666)


@pytest.mark.parametrize("change", [swapped, overwritten])
def test_a_file_of_the_same_length_and_time(fault, zoo, change):
    for name in ("ant", "bee"):
        picture(len(name) + ord(name[0])).save(zoo / name / "0.bmp")
        os.utime(zoo / name / "0.bmp", (1e9, 1e9))
    read(zoo)
    change(zoo)
    wanted = Image.open(zoo / "ant" / "0.bmp").crop((5, 0, 35, 30))
    fault("caches").right(same(read(zoo)[0].images[0], wanted, 16))


def test_a_cache_of_the_version_before_is_read(fault, zoo, root):
    from safetensors.torch import load_file, save_file

    good, _ = read(zoo)
    (path,) = (root / "cache").glob("*.safetensors")
    with images.safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    about.pop("checksum")
    path.unlink()
    save_file(tensors, path, about)
    before = path.stat().st_mtime_ns
    store, said = read(zoo)
    fault("caches").right(
        store.fingerprint == good.fingerprint and path.stat().st_mtime_ns == before and not said
    )


def test_a_mapped_cache_that_the_system_keeps(fault, zoo, root, monkeypatch):
    """As on Windows: a file that is mapped cannot be replaced. The new one lies beside it until it can."""
    before, _ = read(zoo)
    replaced = os.replace

    def keeping(source, target):
        if os.path.exists(target):
            raise PermissionError(13, "The process cannot access the file", str(target))
        replaced(source, target)

    monkeypatch.setattr(os, "replace", keeping)
    picture(77).save(zoo / "ant" / "new.png")
    stores = [read(zoo)[0] for _ in range(2)]
    right = [len(store) for store in stores] == [5, 5] and len(
        list((root / "cache").glob("*.safetensors"))
    ) == 2
    monkeypatch.setattr(os, "replace", replaced)
    stores += [read(zoo)[0] for _ in range(2)]
    right = right and len({store.fingerprint for store in stores}) == 1 and len(before) == 4
    fault("caches").right(right and len(list((root / "cache").glob("*.safetensors"))) == 1)


def test_a_full_disk_in_a_sentence(fault, zoo, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "save_file", full)
    with fault("caches").refused(DataError, says=("No space", "make room")):
        read(zoo)


def archive(path, parts):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in parts.items():
            member = tarfile.TarInfo(f"imagenette2-160/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def nette():
    parts = {}
    for label, wnid in enumerate(images.Imagenette._WNID_TO_CLASS):
        for split in ("train", "val"):
            kept = io.BytesIO()
            picture(label, (64, 64)).save(kept, "JPEG", quality=95)
            parts[f"{split}/{wnid}/0.JPEG"] = kept.getvalue()
    return parts


def get():
    return images.load("imagenette", "train", 16, progress=False, download=False)


def test_an_archive_that_is_not_the_official_one(fault, root):
    archive(root / "imagenette2-160.tgz", nette())
    with pytest.warns(UserWarning, match="not the official file"):
        store = get()
    fault("archives").right(len(store) == 10 and "not the official file" in store.origin)


@pytest.mark.filterwarnings("ignore")
def test_what_is_changed_in_an_unpacked_archive_is_read_again(fault, root):
    archive(root / "imagenette2-160.tgz", nette())
    train, store = root / "imagenette2-160" / "train", get()
    first, last = (sorted(train.iterdir())[row] for row in (0, -1))
    picture(77, (64, 64)).save(first / "0.JPEG", quality=95)
    changed = get()
    fault("archives").right(
        same(changed.images[0], picture(77), 60) and changed.fingerprint != store.fingerprint
    )
    (first / "0.JPEG").rename(last / "1.JPEG")
    picture(78, (64, 64)).save(first / "2.JPEG", quality=95)
    moved = get()
    pairs = [
        (int(label), file.split(os.sep)[0]) for label, file in zip(moved.labels, moved.files, strict=True)
    ]
    wnids = list(images.WNIDS["imagenette"])
    right = len(moved) == 11 and all(wnids[label] == folder for label, folder in pairs)
    fault("archives").right(right and torch.equal(moved.images[-1], changed.images[0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("note", ["[]", "null", "3", '{"archive": 1, "official": 1, "sha256": 5}', "{"])
def test_an_odd_note_in_an_unpacked_archive(fault, root, note):
    archive(root / "imagenette2-160.tgz", nette())
    wanted = get().fingerprint
    (root / "imagenette2-160" / ".ssl_lessons.json").write_text(note)
    store = get()
    fault("archives").right(store.fingerprint == wanted and "by hand" in store.origin)


def test_an_archive_under_another_name(fault, root):
    archive(root / "imagewoof2-160.tgz", nette())
    with fault("archives").refused(DataError, says=("imagewoof2-160.tgz", "wrong")):
        images.load("imagewoof", "train", 16, progress=False, download=False)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8, 0.98, -6, -2])
def test_an_archive_with_a_flipped_byte(fault, root, at):
    path = root / "imagenette2-160.tgz"
    archive(path, nette())
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if at > 0 else at] ^= 0x10
    path.write_bytes(data)
    with fault("archives").refused(DataError, says=("imagenette2-160.tgz", "remove it")):
        get()


@pytest.mark.parametrize("many", [False, True], ids=["one large file", "many empty files"])
def test_an_archive_that_swells(fault, root, many):
    zeros = {f"train/n{i}": b"" for i in range(4_000)} if many else {"train/zeros": b"\0" * 60_000_000}
    archive(root / "imagenette2-160.tgz", zeros)
    with fault("archives").refused(DataError, says="ten times"):
        get()


def test_an_archive_in_an_archive_is_no_picture(fault, root):
    (root / "imagenette2-160.tgz").write_bytes(gzip.compress(gzip.compress(b"\0" * 10_000_000)))
    with fault("archives").refused(DataError, says="could not unpack"):
        get()


PLACES = {
    "plain": "zoo",
    "called test": "test",
    "a no-break space": "zoo\xa0",
    "not UTF-8": os.fsdecode(b"caf\xe9"),
}


@pytest.mark.parametrize("name", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("splits", [False, True], ids=["classes", "splits"])
def test_a_record_knows_the_folder_that_was_asked_for(fault, tmp_path, monkeypatch, name, splits):
    place = tmp_path / "all" / name
    for split in ("train", "test") if splits else ("",):
        photos(place / split, first=len(split))
    monkeypatch.chdir(tmp_path)
    store = load(os.path.join("all", name))
    Run.create(tmp_path / "run", dataset=store.subset([0, 1]).facts)
    asked = place_of(Run.open(tmp_path / "run").record["dataset"])
    fault("places").right(asked == str(place) and load(asked).fingerprint == store.fingerprint)


@pytest.mark.parametrize("read_by", ["load", "folder"])
def test_a_record_keeps_links_as_they_are(fault, tmp_path, read_by):
    for i, name in enumerate(("other/train", "other/test", "own/test")):
        photos(tmp_path / name, first=100 * i)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name, target in (("train", "other/train"), ("test", "own/test")):
        (linked / name).symlink_to(tmp_path / target, target_is_directory=True)
    store = load(linked) if read_by == "load" else read(linked / "train", split="train")[0]
    asked = place_of(store.facts)
    fault("places").right(asked == str(linked if read_by == "load" else linked / "train"))
    if read_by == "load":
        fault("places").right(
            load(asked, "test").fingerprint == read(tmp_path / "own" / "test")[0].fingerprint
        )


def test_only_folders_have_a_place(fault):
    stores = load("shapes", size=8), images.from_dataset(PIXELS, 16, progress=False)
    names = [place_of(store.facts) for store in stores]
    right = names == ["shapes", "tensor"] and not any("place" in store.facts for store in stores)
    fault("places").right(right)


@pytest.mark.parametrize("named", ["data", "./data", "../data", "data/sub"])
def test_a_relative_data_root(fault, monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_LESSONS_DATA", named)
    with fault("places").refused(DataError, says=("SSL_LESSONS_DATA", str(tmp_path))):
        images.data_root()


@pytest.mark.parametrize("named", ["~/pictures", "/dev/null"])
def test_other_data_roots(fault, monkeypatch, tmp_path, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_LESSONS_DATA", named)
    if named == "~/pictures":
        fault("places").right(images.data_root() == tmp_path / "pictures")
        return
    with fault("places").refused(DataError, says="folder"):
        images.cache_root()


# ---- Augmentations of one's own ---------------------------------------------------------------------------


def test_an_augmentation_in_place_changes_no_image(fault):
    learner = SimSiam(build("resnet18", 16), image_size=16, augment=lambda batch: batch.mul_(0.5))
    store = store_of(None)
    before = store.images.clone()
    first, second = learner.augment(store.images)
    fault("augmentations").right(torch.equal(store.images, before) and torch.equal(first, second))
