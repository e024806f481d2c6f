"""The long campaign: faults drawn from a seed, not written down; thousands of them.

    python -m pytest -n 2 --dist worksteal -m campaign tests/faults

It is left out of a plain run of the tests. CAMPAIGN=2 in the environment doubles every count, CAMPAIGN_SEED
draws other faults; what the last one came to stands in data/results/faults.md. A case that fails is named by
its number, from which it can be drawn again.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_data import picture
from test_runs import train, values
from tiny import ENV, noise
from torch import nn

from ssl_lessons import evaluate, images, lab, records, training
from ssl_lessons.batch import grid, leaderboard
from ssl_lessons.methods.byol import byol_loss
from ssl_lessons.methods.moco import info_nce
from ssl_lessons.methods.relational import focal_bce
from ssl_lessons.methods.simclr import nt_xent
from ssl_lessons.methods.simsiam import negative_cosine
from ssl_lessons.parameters import KINDS, RANGES, Parameter, Unknown, fit
from ssl_lessons.records import RecordError, Run

pytestmark = [pytest.mark.campaign, pytest.mark.usefixtures("one_thread", "root")]
TIMES, SEED = float(os.environ.get("CAMPAIGN", 1)), int(os.environ.get("CAMPAIGN_SEED", 0))


def cases(count: int):
    """Numbers of cases, from which each draws its own fault."""
    return pytest.mark.parametrize("case", range(int(count * TIMES)))


def drawn(kind: str, case: int) -> random.Random:
    return random.Random(f"{SEED} {kind} {case}")


# ---- Files of a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs that has been judged, and what goes on from its first epoch."""
    place = tmp_path_factory.mktemp("finished") / "run"
    train(place)
    Run.open(place).add_metric("knn", 0.5, protocol="planted")
    return place


def harm(path: Path, draw: random.Random) -> str:
    """Damage a file as disks, copies and editors do; what was done, in words."""
    data = bytearray(path.read_bytes())
    at, length = draw.randrange(max(1, len(data))), draw.choice([1, 8, 512])
    kind = draw.choice(["flip", "zeros", "cut", "longer", "doubled", "shifted", "text"])
    if kind == "flip" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "cut":
        del data[at:]
    elif kind == "longer":
        data += draw.randbytes(length)
    elif kind == "doubled":
        data[at:at] = data[at : at + length]
    elif kind == "shifted":
        del data[at : at + length]
    else:  # an editor that reads it as text
        data = bytearray(bytes(data).replace(b"\n", b"\r\n"))
    path.write_bytes(data)
    return f"{path.name}: {kind} at {at}"


@cases(300)
@pytest.mark.parametrize("name", ["record.json", "encoder.safetensors", "resume.pt"])
def test_a_damaged_file_of_a_run(finished, tmp_path, fault, name, case, capsys):
    """Opened, judged, trained on, listed: the numbers of before, a mended file, or a sentence."""
    kind, draw = fault(f"campaign: {name} damaged"), drawn(name, case)
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    what = harm(folder / name, draw)
    whole, expected = Run.open(finished).record, load_file(finished / "encoder.safetensors")
    use = draw.choice(["open", "encoder", "train", "leaderboard"])
    try:
        if use == "leaderboard":
            runs, problems = leaderboard.read([folder])
            listed = len(runs) == 1 and runs["knn"].iloc[0] == 0.5
            kind.right(listed or (not len(runs) and len(problems) == 1), "silent", f"{what}: {problems}")
            return
        if use == "train":  # one more call of the same: it is finished, or is mended first
            train(folder)
        run = Run.open(folder)
        weights = run.encoder()
    except RecordError as error:
        with kind.refused(RecordError, training.TrainingError, says=str(folder)):
            raise error
        return
    same = all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    numbers = values(run.record) == values(whole)
    judged = run.record["metrics"] in (whole["metrics"], {})  # taken from resume.pt: to be judged again
    kind.right(same and numbers and judged, "silent", f"{what}, {use}")


CHILD = """import sys
from test_runs import train
train(sys.argv[1], epochs=6)
"""


@cases(40)
def test_a_run_killed_at_any_moment(tmp_path_factory, tmp_path, fault, case):
    """kill -9 at a drawn moment, again and again until it ends: the numbers of one that was left alone."""
    draw, alone = drawn("kill", case), tmp_path_factory.getbasetemp() / "alone"
    if not (alone / "record.json").exists():
        train(alone, epochs=6)
    folder, kills = tmp_path / "run", 0
    environment = {**ENV, "PYTHONPATH": f"{Path(__file__).parent}:{ENV['PYTHONPATH']}"}
    while True:
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment)
        deadline = time.monotonic() + 30
        while not (folder / "resume.pt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)  # the imports are no moment of interest, but the first write is
        if kills < 4:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.random() * 0.4)
        if kills < 4 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.wait() == 0
        break
    same = values(Run.open(folder).record) == values(Run.open(alone).record)
    weights, expected = (Run.open(place).encoder() for place in (folder, alone))
    equal = all(torch.equal(weights[key], expected[key]) for key in expected)
    litter = [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
    fault("campaign: killed at any moment").right(same and equal and not litter, "lost", f"{kills} {litter}")


# ---- Values ------------------------------------------------------------------------------------------------

PIECES = [
    "1",
    "-1",
    "0",
    "2",
    "1e2",
    "1e400",
    "0x10",
    "1_000",
    ".5",
    "5.",
    "nan",
    "inf",
    "-0",
    "True",
    "none",
]
PIECES += [
    "false",
    "None",
    "null",
    "",
    " ",
    "\n",
    "\x00",
    "é",
    "٣",
    "½",
    "²",
    "１",
    "(1, 2)",
    "[None, 8]",
    "()",
]
PIECES += [
    "(" * 300,
    "9" * 5000,
    "1e-400",
    "'a'",
    '"',
    "\\",
    "__import__('os')",
    "lambda: 0",
    "𝟙",
    "+3",
    "1 2",
]


def odd(draw: random.Random):
    """A value as a shell, YAML, papermill or a notebook may hand it over."""
    kinds = ["piece", "joined", "letters", "int", "float", "bool", "none", "list", "tuple", "dict", "array"]
    kind = draw.choice(kinds)
    if kind == "piece":
        return draw.choice(PIECES)
    if kind == "joined":
        return "".join(draw.choices(PIECES, k=2))
    if kind == "letters":
        return "".join(draw.choices(string.printable, k=draw.randrange(6)))
    if kind in ("list", "tuple"):
        members = [draw.choice([1, 2.0, None, "3", True, -1, "x", 1e30]) for _ in range(draw.randrange(4))]
        return members if kind == "list" else tuple(members)
    if kind == "array":
        return draw.choice([np.int64(3), np.float32(0.5), np.bool_(True), torch.tensor(3), np.array([1, 2])])
    whole = draw.choice([0, 1, -1, 2, 128, 2**31, 2**63, -(2**63), 10**400])
    plain = {"int": whole, "float": draw.choice([0.0, -0.0, 0.5, 1.0, 2.5, 1e308, math.nan, math.inf])}
    return {**plain, "bool": draw.random() < 0.5, "none": None, "dict": {"a": 1}}[kind]


ANNOTATIONS = ["int", "int | None", "float", "float | None", "bool", "str", "bool | None", "int | str"]
ANNOTATIONS += [
    "tuple[int | None, ...]",
    "list[float]",
    "Literal['a', 1]",
    "tuple[int, float]",
    "float | str",
]
NAMES = [*RANGES, "epochs", "batch_size", "queue", "anything"]


def belongs(value, annotation: str, name: str) -> bool:
    """Whether a value is of an annotation and in its name's range, told apart from parameters.py."""
    plain = {"int": int, "float": float, "bool": bool, "str": str, "None": type(None)}
    if " | " in annotation and "[" not in annotation:
        return any(belongs(value, part, name) for part in annotation.split(" | "))
    if annotation.startswith("Literal"):
        return type(value) in (int, str) and value in ("a", 1)
    if annotation.startswith("tuple[int |"):
        return type(value) is tuple and all(member is None or type(member) is int for member in value)
    if annotation.startswith("tuple"):
        return type(value) is tuple and len(value) == 2 and type(value[0]) is int
    if annotation.startswith("list"):
        return type(value) is list and all(type(member) in (int, float) for member in value)
    if annotation == "float" and type(value) is int:
        value = float(value)
    if type(value) is not plain[annotation]:
        return False
    low, high, _ = RANGES.get(name, (1, math.inf, "") if annotation == "int" else (-math.inf, math.inf, ""))
    return annotation not in ("int", "float") or (math.isfinite(value) and low <= value <= high)


@cases(40)
@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_values_on_the_way_in(fault, annotation, case):
    draw = drawn(annotation, case)
    for _ in range(25):
        name, value = draw.choice(NAMES), odd(draw)
        if "|" in annotation and name in RANGES and "None" not in annotation:
            name = "anything"  # a union's range is that of its numbers: told apart below for plain ones
        kind = fault("campaign: values on the way in")
        try:
            got = fit(name, value, Parameter(annotation, ...))
        except Unknown as error:
            with kind.refused(Unknown, says=name):
                raise error
            continue
        fits = belongs(got, annotation, name)
        kind.right(fits, "silent", f"{name}: {annotation} = {value!r} became {got!r}")


@cases(60)
@pytest.mark.parametrize("method", list(lab.METHODS))
def test_fields_of_every_recipe(fault, method, case):
    """A recipe with a field overridden is of its annotations, and says what it was refused for."""
    draw, recipes = drawn(method, case), lab.METHODS[method].recipes
    for _ in range(10):
        recipe = draw.choice(list(recipes.values()))
        field = draw.choice(
            [field for field in dataclasses.fields(recipe) if field.name not in ("name", "source")]
        )
        value, kind = odd(draw), fault("campaign: fields of a recipe")
        try:
            changed = recipe.override(**{field.name: value})
        except ValueError as error:
            with kind.refused(ValueError, says=field.name.split("_")[0]):
                raise error
            continue
        got = getattr(changed, field.name)
        finite = not isinstance(got, float) or math.isfinite(got)
        known = got is None or isinstance(got, (tuple, *[kind for kind in KINDS if isinstance(kind, type)]))
        kind.right(finite and known, "silent", f"{field.name} = {value!r} became {got!r}")


PLAN = """notebook: row.ipynb
profile: smoke
parameters: {epochs: 1, dataset: shapes}
grid:
  method: [simclr, moco]
  seed: 0-1
exclude:
  - {method: moco, seed: 1}
override:
  - {when: {method: simclr}, set: {temperature: 0.2}}
"""


@cases(400)
def test_a_grids_file_changed_by_a_hand_that_slipped(tmp_path, fault, case):
    """Characters and lines lost, doubled or exchanged: runs of the notebook, or a sentence, at once."""
    draw, text = drawn("yaml", case), PLAN
    for _ in range(draw.randrange(1, 4)):
        at, length = draw.randrange(len(text)), draw.choice([1, 1, 2, 10])
        letter = draw.choice(list(":-[]{},&*!|>'\"#%@`\t\n 0x") + ["*a ", "&a ", "? ", "<<: ", "---\n"])
        lines = text.splitlines(keepends=True)
        draw.shuffle(lines) if draw.random() < 0.1 else None
        text = draw.choice(
            [
                text[:at] + letter + text[at:],
                text[:at] + text[at + length :],
                text[:at] + text[at:] * 2,
                "".join(lines),
            ]
        )
    file = tmp_path / "plan.yaml"
    shutil.copy(grid.notebooks() / "grids" / "row.ipynb", tmp_path)
    file.write_text(text)
    begun, kind = time.perf_counter(), fault("campaign: YAML of a grid")
    try:
        plan = grid.read(file)
    except Unknown as error:
        with kind.refused(Unknown):
            raise error
        return
    seconds = time.perf_counter() - begun
    settings = [one.parameters for one in plan]
    known = all(run.get("method", "moco") in lab.TITLES for run in settings)
    kind.right(known and 0 < len(plan) <= grid.MOST_RUNS and seconds < 5, "silent", f"{text}\n{settings}")


# ---- Folders and pictures ----------------------------------------------------------------------------------

LETTERS = [
    "a",
    "B",
    "cat",
    "dög",
    "new\nline",
    "sp ace",
    "\x1b[31m",
    "train",
    "val",
    "Test",
    "..x",
    "x.jpg",
    "日本",
]
LETTERS += [
    "-p",
    "=1",
    "a(b)",
    "c, d",
    "e (f)",
    "%s",
    "{g}",
    "'h'",
    "~",
    "i\\j",
    "\udc80",
    "e\u0301",
    "é",
    "COM1",
]


def save(draw: random.Random, folder: Path, number: int) -> tuple[Path, bool]:
    """A picture, or something that is none, in a folder; its path and whether it is a whole picture."""
    seed = draw.randrange(10**6)
    name = f"{draw.choice(LETTERS)}{number}".replace("/", "_")
    ending = draw.choice(
        ["png", "PNG", "jpg", "JPEG", "bmp", "webp", "gif", "tiff", "txt", "", "png.bak", "jpe"]
    )
    path = folder / (f"{name}.{ending}" if ending else name)
    image = picture(seed, (draw.randrange(8, 40), draw.randrange(8, 40)))
    image = image.convert(draw.choice(["RGB", "RGB", "L", "P", "RGBA", "CMYK", "1", "LA"]))
    forms = {"png": "PNG", "bmp": "BMP", "webp": "WEBP", "gif": "GIF", "tiff": "TIFF"}
    form, data = forms.get(ending.lower(), "JPEG"), io.BytesIO()
    if form not in ("PNG", "TIFF"):  # these take all of the modes
        image = image.convert("RGB" if form != "JPEG" or image.mode not in ("L", "CMYK") else image.mode)
    image = image.convert("RGB") if (form, image.mode) == ("PNG", "CMYK") else image
    image.save(data, form)
    content, whole = data.getvalue(), draw.random() < 0.85
    if not whole:
        content = draw.choice(
            [content[: len(content) // 3], b"", draw.randbytes(200), b"<html>", content[::-1]]
        )
    path.write_bytes(content)
    return path, whole and ending.lower().split(".")[-1] not in ("txt", "", "bak")


def composed(name: str) -> str:
    """A folder's name as that of a class: é may be one letter or two."""
    return unicodedata.normalize("NFC", images.printable(name))


@cases(300)
def test_a_folder_as_it_comes(tmp_path, fault, case):
    """Names, depths, formats and faults as drawn. What has been read is whole and of its own folder's class;
    what has not been read is counted and named."""
    draw, kind = drawn("folder", case), fault("campaign: folders")
    root, written = tmp_path / f"photos{case}", {}
    names = draw.sample(LETTERS, draw.randrange(1, 5))
    for name in names:
        place = root / name
        for _ in range(draw.choice([0, 0, 1])):
            place /= draw.choice(LETTERS)
        place.mkdir(parents=True, exist_ok=True)
        for number in range(draw.randrange(0, 6)):
            path, whole = save(draw, place, number)
            written[path] = whole
    if draw.random() < 0.3:
        path, whole = save(draw, root, 99)
        written[path] = whole
    hidden = [path for path in written if "/." in f"/{path.relative_to(root)}"]  # another system's own
    expected = {path for path, whole in written.items() if whole and path not in hidden}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            store = images.folder(root, 16, progress=False)
        except images.DataError as error:
            splits = {"train", "val", "test"} & {name.lower() for name in names}
            nothing = all(path.parent == root for path in expected)  # a stray is no class
            alike = len({*map(composed, names)}) < len(names) and "two classes" in str(error)
            if not (splits or nothing or alike):
                kind.right(False, "lost", str(error))
            with kind.refused(images.DataError, says=str(root)[:20]):
                raise error
            return
    read = {root / file for file in store.files}
    if not store.classes:
        labels = True
    else:
        of = [store.classes[label] for label in store.labels.tolist()]
        own = [composed(Path(file).parts[0]) for file in store.files]
        labels = of == own
    told = len(store.skipped) >= len(set(written) - set(hidden) - read)
    strays = {path for path in expected if path.parent == root} if store.classes else set()
    lost = expected - read - strays
    kind.right(labels and told and not lost, "silent", f"{lost} {store.skipped} {store.files} {written}")


@cases(300)
def test_a_damaged_picture(tmp_path, fault, case):
    """It is read, or left out by name; beside it the whole one is read to the bit."""
    draw, kind = drawn("picture", case), fault("campaign: damaged pictures")
    form = draw.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"])
    place = tmp_path / f"damaged{case}" / "cat"
    place.mkdir(parents=True)
    source = picture(case, (60, 40))
    source.save(place / "0.png")
    source.save(
        place / f"1.{form.lower()}", form, **({"exif": b"Exif\x00\x00MM\x00*"} if form == "JPEG" else {})
    )
    for _ in range(draw.choice([1, 1, 3, 20])):
        what = harm(place / f"1.{form.lower()}", draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = images.folder(place.parent, 16, progress=False)
    whole = torch.from_numpy(images.square(str(place / "0.png"), 16)).transpose(0, 1)
    accounted = len(store) + len(store.skipped) == 2
    kind.right(accounted and torch.equal(store.images[0], whole), "silent", f"{what}: {store.skipped}")


@cases(120)
def test_a_damaged_cache_of_images(tmp_path, fault, case):
    draw, kind = drawn("cache", case), fault("campaign: a damaged cache of images")
    place = tmp_path / f"zoo{case}"
    for label, name in enumerate(["ant", "bee"]):
        (place / name).mkdir(parents=True)
        for i in range(3):
            picture(10 * label + i).save(place / name / f"{i}.png")
    before = images.folder(place, 16, progress=False)
    expected, files = before.images.clone(), before.files
    del before
    what = harm(next(images.cache_root().glob("zoo*.safetensors")), draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = images.folder(place, 16, progress=False)
    same = (
        torch.equal(after.images, expected)
        and after.files == files
        and after.labels.tolist() == [0] * 3 + [1] * 3
    )
    kind.right(same, "silent", what)


# ---- Networks and losses -----------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def network(draw: random.Random) -> nn.Sequential:
    """A network that nobody has thought of: convolutions and what stands between them, as drawn."""
    layers, channels = nn.Sequential(), 3
    for _ in range(draw.randrange(1, 5)):
        width = draw.choice([4, 6, 8])
        layers.append(nn.Conv2d(channels, width, draw.choice([1, 3]), padding=draw.choice([0, 1])))
        channels = width
        other = draw.choice(["norm", "group", "act", "pool", "drop", "residual", "none"])
        extra = {"norm": nn.BatchNorm2d(channels), "group": nn.GroupNorm(2, channels), "act": nn.GELU()}
        extra |= {"pool": nn.MaxPool2d(2), "drop": nn.Dropout(0.3), "none": nn.Identity()}
        extra["residual"] = Residual(nn.Conv2d(channels, channels, 3, padding=1))
        layers.append(extra[other])
    if draw.random() < 0.7:
        layers.append(nn.AdaptiveAvgPool2d(1))
        layers.append(nn.Flatten())
        if draw.random() < 0.5:
            layers.append(nn.Linear(channels, draw.choice([5, 10])))
    return layers


@cases(150)
@pytest.mark.filterwarnings("ignore:the network is read at")
def test_a_network_as_it_comes(fault, case):
    """Any layer of any of them trains by any method, and is read as its own hook says; or it is refused."""
    draw, kind = drawn("network", case), fault("campaign: networks")
    torch.manual_seed(case)
    net = network(draw)
    layer = draw.choice([None, *[name for name, _ in net.named_modules() if name]])
    make = draw.choice(list(lab.METHODS.values()))
    fields = {"queue": 16} if make is lab.METHODS["moco"] else {}
    seen = {}
    try:
        method = make(net, layer, image_size=16, recipe="short", **fields)
        store = noise(16, 20)
        record = training.pretrain(
            method, store, epochs=1, batch_size=8, device="cpu", progress="none", stop_on_collapse=False
        )
    except (ValueError, training.TrainingError) as error:
        with kind.refused(ValueError, training.TrainingError):
            raise error
        return
    x = evaluate.features(method.encoder, store, 16, "cpu")
    target = net if layer is None else net.get_submodule(layer)
    hook = target.register_forward_hook(lambda module, _, output: seen.setdefault("output", output))
    net.eval()
    with torch.no_grad():
        net(evaluate.centre(store.images, 16))
    hook.remove()
    output = seen["output"]
    mean = output.mean(dim=(2, 3)) if output.dim() == 4 else output
    same = mean.shape == x.shape and torch.allclose(mean, x, atol=1e-4)
    kind.right(
        same and math.isfinite(record["history"][-1]["loss"]), "silent", f"{net} at {layer}: {mean.shape}"
    )


LOSSES = {
    "info_nce": lambda a, b, c: info_nce(a, b, c, 0.2),
    "nt_xent": lambda a, b, c: nt_xent(a, b, 0.5),
    "byol_loss": lambda a, b, c: byol_loss(a, b),
    "negative_cosine": lambda a, b, c: negative_cosine(a, b),
    "focal_bce": lambda a, b, c: focal_bce(a[:, 0], (b[:, 0] > 0).float()),
}


@cases(200)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_anything(fault, name, case):
    """Shapes, dtypes and sizes of numbers as drawn: within a thousandth of float64 on the same numbers."""
    draw, kind = drawn(name, case), fault("campaign: losses")
    torch.manual_seed(case)
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    shapes = [(draw.choice([1, 2, 5, 8]), draw.choice([1, 3, 8])) for _ in range(3)]
    if draw.random() < 0.7:
        shapes[1] = shapes[0]
        shapes[2] = (shapes[2][0], shapes[0][1])
    scale = draw.choice([1, 1, 1e-3, 1e3])
    a, b, c = (scale * torch.randn(shape) for shape in shapes)
    if name == "info_nce":
        a, b, c = (nn.functional.normalize(part, dim=1) for part in (a, b, c))
    a, b, c = (part.to(dtype) for part in (a, b, c))
    unlike = a.shape[0] != b.shape[0] if name == "focal_bce" else a.shape != b.shape
    unlike |= name == "info_nce" and c.shape[1] != a.shape[1]
    try:
        value = LOSSES[name](a, b, c)
    except ValueError as error:
        if not (unlike or (name == "nt_xent" and len(a) == 1)):
            kind.right(False, "lost", str(error))
        with kind.refused(ValueError, says=() if len(a) == 1 else "expected"):
            raise error
        return
    reference = LOSSES[name](a.double(), b.double(), c.double())
    near = math.isclose(value.item(), reference.item(), rel_tol=1e-3, abs_tol=1e-3)
    kind.right(not unlike and near, "silent", f"{dtype} {shapes} {scale}: {value.item()} {reference.item()}")


@cases(100)
def test_a_judgement_of_anything(fault, case):
    """kNN beside a slow one written out here, on features and labels as drawn."""
    draw, kind = drawn("knn", case), fault("campaign: kNN")
    torch.manual_seed(case)
    count, width, k = draw.choice([3, 20, 60]), draw.choice([2, 16]), draw.choice([1, 5, 20])
    x, test = torch.randn(count, width), torch.randn(7, width)
    y = torch.randint(0, draw.choice([1, 3, 9]), (count,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = evaluate.knn(x, y, test, k=k, t=0.1)
    unit = [row / row.norm() for row in x.double()]
    for row, answer in zip(test.double(), got.tolist(), strict=True):
        cosines = torch.stack([(row / row.norm()) @ other for other in unit])
        votes = {}
        for i in cosines.argsort(descending=True)[:k].tolist():
            votes[y[i].item()] = votes.get(y[i].item(), 0) + math.exp(cosines[i].item() / 0.1)
        best = max(votes.values())
        kind.right(votes.get(answer, 0) >= best * (1 - 1e-4), "silent", f"{votes} {answer}")


@cases(100)
def test_a_record_of_anything(tmp_path, fault, case):
    """A record some of whose parts are odd: it is shown as it says, or left out by name; others stay."""
    draw, kind = drawn("record", case), fault("campaign: odd records")
    places = sorted((records.results_folder() / "leaderboard").glob("simclr-imagenette-[0-9].json"))
    record = json.loads(places[0].read_text())
    record.pop("checksum")
    where, at = record, None
    for _ in range(draw.randrange(1, 4)):
        at = draw.choice(list(where) if isinstance(where, dict) else range(len(where)))
        if not isinstance(where[at], dict | list) or not where[at]:
            break
        where = where[at]
    at = draw.choice(list(where) if isinstance(where, dict) else range(len(where)))
    value = odd(draw)
    with contextlib.suppress(TypeError):
        json.dumps(value)
        where[at] = value
    text = json.dumps(record)
    (tmp_path / "odd.json").write_text(text)
    runs, problems = leaderboard.read([tmp_path / "odd.json", places[1]])
    accounted = len(runs) + len(problems) == 2
    if len(runs) and "knn" in runs and runs["knn"].notna().any():
        for form in (*leaderboard.FORMS.values(), leaderboard.as_json):
            shown = form(leaderboard.tables(runs))
            accounted &= bool(shown) and not any(c in shown for c in "\x1b\x00")
    kind.right(accounted, "silent", f"{at}: {value!r} {problems}")


def test_the_pictures_of_this_campaign_are_pictures(tmp_path):
    """What `save` calls whole is opened by Pillow itself."""
    draw = drawn("save", 0)
    for number in range(200):
        path, whole = save(draw, tmp_path, number)
        if whole:
            Image.open(path).load()
