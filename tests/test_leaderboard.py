"""The leaderboard: sums against NumPy's, what may not be mixed, what is damaged, the formats, README.md."""

import copy
import csv
import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ssl_lessons import cli, figures
from ssl_lessons.batch import leaderboard

ROOT = Path(__file__).resolve().parent.parent
README = runpy.run_path(str(ROOT / "notebooks" / "readme.py"))
START, END = "<!-- results -->", "<!-- /results -->"
PROBE = "linear probe (L-BFGS, L2 {l2} chosen on train), 10% of the labels, seed {seed}, backbone, 32 px"


def record(method="SimCLR", seed=0, knn=0.5, **parts) -> dict:
    """A record as `pretrain` and `judge` write it; `parts` replace its top level."""
    trained = method != "random"
    row = {"loss": 2.0, "seconds": 10.0, "peak_memory": 10**9}
    whole = {
        "schema": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11", "ssl-lessons": "0.1.0", "torch": "2.9", "torchvision": "0.24"},
        "device": "CPU, 2 cores",
        "dataset": {"name": "toys", "split": "train", "size": 48, "images": 1000, "fingerprint": "abc"},
        "recipe": {"name": "lesson", "source": "ours", "lr": 0.1, "policy": {"jitter": [0.4]}}
        if trained
        else None,
        "seed": seed,
        "seconds": 120.0 if trained else 0.0,
        "history": [{**row, "epoch": epoch} for epoch in (1, 2, 3)] if trained else [],
        "metrics": {
            "knn": {"value": knn, "protocol": "kNN, k 20"},
            "linear_10": {"value": knn - 0.1, "protocol": PROBE.format(l2=10.0**-seed, seed=seed)},
        },
        "network": {"name": "resnet18", "image_size": 32, "stem": "imagenet", "layer": None},
        "method": method,
        "view_size": 32,
        "batch_size": 128 if trained else None,
        "precision": "bf16",
    }
    return {**whole, **parts}


@pytest.fixture
def write(tmp_path):
    """Writes records as files, and says in which folder they lie."""

    def written(*records) -> Path:
        for i, each in enumerate(records):
            folder = tmp_path / "runs" / f"run{i}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "record.json").write_text(json.dumps(each), encoding="utf-8")
        return tmp_path / "runs"

    return written


@pytest.fixture
def board(write):
    """Tables straight from records."""

    def made(*records, metric="knn"):
        runs, problems = leaderboard.read([write(*records)])
        assert not problems
        return leaderboard.tables(runs, metric)

    return made


def only(found):
    """The one row of the one table."""
    (table,) = found
    (row,) = table.rows.to_dict("records")
    return row


def changed(base: dict, path: str, value) -> dict:
    """A copy of a record in which one thing is another: changed(r, "dataset.size", 64)."""
    whole = copy.deepcopy(base)
    *parts, last = path.split(".")
    inner = whole
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return whole


# ---- Adding up ---------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_over_seeds_are_numpys(board):
    values, minutes = [0.31, 0.36, 0.47], [60.0, 90.0, 240.0]
    runs = [record(seed=s, knn=v, seconds=m) for s, (v, m) in enumerate(zip(values, minutes, strict=True))]
    row = only(board(*runs))
    assert row["n"] == 3 and row["seeds"] == [0, 1, 2]
    assert row["knn mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert row["knn std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert row["linear_10 mean"] == pytest.approx(np.mean(values) - 0.1, abs=1e-12)
    assert row["minutes"] == 1.0, "the least: the same work takes longer on a machine that is busy"


def test_one_seed_has_no_spread_and_twice_the_same_is_still_one(board):
    late = record(seed=0, knn=0.6, started="2026-02-02T00:00:00+00:00")
    (table,) = found = board(late, record(seed=0, knn=0.4))
    row = only(found)
    assert (row["n"], row["knn mean"], row["knn n"]) == (1, 0.6, 1) and np.isnan(row["knn std"])
    legend = " ".join(leaderboard.below(table, "knn"))
    assert "of each seed the latest run" in legend and "single seed has no spread" in legend
    assert "±" not in leaderboard.shown(table).to_string()


def test_a_disturbed_epoch_counts_little_and_memory_is_the_most(board):
    history = [
        {"epoch": 1, "seconds": 10.0, "peak_memory": 3 * 10**9},
        {"epoch": 2, "seconds": 500.0, "peak_memory": 10**9},
        {"epoch": 3, "seconds": 12.0, "peak_memory": 10**9},
    ]
    row = only(board(record(history=history)))
    assert row["images/s"] == pytest.approx(1000 / 12)
    assert (row["memory"], row["epochs"]) == (3 * 10**9, 3)


def test_minutes_beside_other_work_say_nothing(board):
    runs = [record(seed=0, seconds=600.0), record(seed=1, seconds=60.0, note="beside others")]
    assert only(board(*runs))["minutes"] == 10.0
    (table,) = found = board(record(note="beside others", seconds=60.0))
    assert np.isnan(only(found)["minutes"]) and leaderboard.shown(table)["least minutes"][0] == "–"
    figures.leaderboard(found).canvas.draw()
    plt.close("all")


def test_rows_are_ranked_by_the_metric_asked_for(board):
    runs = [record("SimCLR", knn=0.4), record("BYOL", knn=0.6), record("random", knn=0.5)]
    runs[0]["metrics"]["linear_10"]["value"] = 0.9
    (table,) = board(*runs)
    assert list(zip(table.rows["rank"], table.rows["title"], strict=True)) == [
        (1, "BYOL"),
        (2, "random encoder"),
        (3, "SimCLR"),
    ]
    (table,) = board(*runs, metric="linear_10")
    assert list(table.rows["title"]) == ["SimCLR", "BYOL", "random encoder"]
    random = table.rows.iloc[2]
    assert (random["epochs"], random["minutes"]) == (0, 0) and np.isnan(random["images/s"])


def test_runs_that_differ_only_in_their_device_are_one_row(board):
    """The mean is over all seeds; the minutes are of the quickest run, whose device is named first."""
    runs = [record(seed=s, knn=0.4 + 0.1 * s, device="a slow CPU", seconds=600.0) for s in (0, 1)]
    runs.append(record(seed=2, knn=0.6, device="a GPU", seconds=60.0))
    (table,) = found = board(*runs)
    row = only(found)
    assert (row["n"], row["minutes"], row["devices"]) == (3, 1.0, ["a GPU", "a slow CPU"])
    assert row["knn mean"] == pytest.approx(0.5)
    assert leaderboard.shown(table)["device"][0] == "a GPU, bf16; a slow CPU, bf16"
    legend = " ".join(leaderboard.below(table, "knn"))
    assert "devices differ" in legend and "quickest seed" in legend


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("recipe.lr", 0.2, "lr 0.2"),
        ("recipe.policy.jitter", [0.8], "policy jitter [0.8]"),
        ("recipe.name", "paper", "recipe paper"),
        ("batch_size", 64, "batch size 64"),
        ("network.name", "conv4", "network conv4"),
        ("precision", "fp32", None),
        ("history", [{"epoch": 1, "seconds": 1.0}], None),
    ],
)
def test_runs_with_other_settings_are_other_rows_and_say_so(board, path, value, told):
    (table,) = board(record(seed=0), changed(record(seed=1), path, value))
    assert list(table.rows["n"]) == [1, 1]
    titles = set(table.rows["title"])
    assert (f"SimCLR, {told}" in titles) if told else titles == {"SimCLR"}


def test_where_a_recipe_comes_from_is_no_setting(board):
    assert only(board(record(), changed(record(seed=1), "recipe.source", "a page")))["n"] == 2


def test_an_older_record_without_a_neutral_field_is_of_the_same_row(board):
    assert only(board(record(), changed(record(seed=1), "recipe.predictor_lr", 1.0)))["n"] == 2
    assert only(board(record(), changed(record(seed=1), "recipe.predictor_weight_decay", None)))["n"] == 2
    (table,) = board(record(), changed(record(seed=1), "recipe.predictor_lr", 10.0))
    assert len(table.rows) == 2


@pytest.mark.parametrize("name, title", [("MoCo", "MoCo v2"), ("BYOL", "BYOL"), ("MyMoCo", "MyMoCo")])
def test_titles(name, title):
    assert leaderboard.title(name) == title


# ---- What may not be mixed ---------------------------------------------------------------------------------

APART = [
    ("dataset.name", "photos", "images"),
    ("dataset.size", 64, "stored"),
    ("dataset.images", 900, "number"),
    ("dataset.fingerprint", "xyz", "fingerprint"),
    ("view_size", 48, "views"),
    ("versions.torch", "2.10", "torch"),
    ("versions.torchvision", "0.25", "torchvision"),
    ("versions.ssl-lessons", "0.2.0", "ssl-lessons"),
    ("metrics.knn.protocol", "kNN, k 200", "protocol of knn"),
    ("metrics.linear_10.protocol", "by another probe", "protocol of linear_10"),
]


@pytest.mark.parametrize("path, value, named", APART, ids=[path for path, *_ in APART])
def test_what_differs_stands_apart_and_is_named(board, path, value, named):
    runs = [record(seed=0, knn=0.4), changed(record(seed=1, knn=0.6), path, value)]
    found = board(*runs)
    assert [list(table.rows["n"]) for table in found] == [[1], [1]]
    assert leaderboard.differences(found) == [named]
    line = leaderboard.why_apart(found)
    assert line.startswith("2 tables, because the records differ in ") and str(value) in line
    for way in (leaderboard.text, leaderboard.markdown, leaderboard.page):
        assert "differ in" in way(found)
    assert found[0].title != found[1].title


def test_versions_that_numbers_do_not_depend_on_and_chosen_weights_do_not_part(board):
    runs = [record(seed=0), changed(record(seed=1), "versions.python", "3.13")]
    assert PROBE.format(l2=1.0, seed=0) != PROBE.format(l2=0.1, seed=1)
    (table,) = board(*runs)
    assert list(table.rows["n"]) == [2] and not leaderboard.why_apart([table])
    assert leaderboard.stable("probe (L2 1e-05 chosen on train), 10%, seed 12, x") == (
        leaderboard.stable("probe (L2 0.1 chosen on train), 10%, seed 3, x")
    )
    assert leaderboard.stable("10%, 3 draws") != leaderboard.stable("10%, 5 draws")


def test_a_run_judged_in_fewer_ways_stays_with_its_like(board):
    less = record(seed=1, knn=0.6)
    del less["metrics"]["linear_10"]
    (table,) = found = board(record(seed=0, knn=0.4), less)
    row = only(found)
    assert (row["knn n"], row["linear_10 n"]) == (2, 1)
    assert "30.0 (n 1)" in leaderboard.text([table])


def test_the_order_of_the_files_changes_nothing(board):
    runs = [record(m, s, 0.3 + 0.01 * s) for m in ("SimCLR", "BYOL") for s in (0, 1)]
    runs += [changed(runs[0], "metrics.knn.protocol", "k 200"), changed(runs[1], "dataset.size", 64)]
    del runs[2]["metrics"]["linear_10"]

    one, other = board(*runs), board(*runs[::-1])
    assert leaderboard.markdown(one) == leaderboard.markdown(other)


# ---- Reading -----------------------------------------------------------------------------------------------


def test_folders_are_searched_and_a_file_counts_once(write):
    folder = write(record(seed=0), record(seed=1))
    (folder / "own-name.json").write_text(json.dumps(record(seed=2)))
    (folder / "benchmark.json").write_text('{"views": 3}')  # another program's: passed over
    for aside in (".hidden", "trials"):
        (folder / aside).mkdir()
        (folder / aside / "record.json").write_text(json.dumps(record(seed=9)))
    runs, problems = leaderboard.read([folder, folder / "run0", folder / "run0" / "record.json"])
    assert sorted(runs["seed"]) == [0, 1, 2] and not problems


DAMAGED = {
    "cut short": '{"schema": 1, "vers',
    "empty": "",
    "a part lacking": json.dumps({"schema": 1}),
    "newer": json.dumps({**record(), "schema": 99}),
    "a metric of words": json.dumps(changed(record(), "metrics.knn", "good")),
    "a value of words": json.dumps(changed(record(), "metrics.knn.value", "good")),
    "rows that are none": json.dumps({**record(), "history": ["x"]}),
    "a dataset of words": json.dumps({**record(), "dataset": "toys"}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_named_and_skipped(write, kind, capsys):
    folder = write(record(), record("BYOL"))
    for name in ("broken.json", "run2/record.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(DAMAGED[kind])
    assert cli.main(["leaderboard", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err.count("left out: ") == 2 and "broken.json" in err and f"run2{os.sep}record.json" in err
    assert "SimCLR" in out and "BYOL" in out
    assert cli.main(["leaderboard", str(folder / "broken.json")]) == 1
    assert "no record can be used" in capsys.readouterr().err


def test_a_run_without_the_metric_is_named(write, capsys):
    folder = write(record(), record("BYOL", metrics={}), changed(record("MoCo"), "metrics.knn.value", None))
    assert cli.main(["leaderboard", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err.count("has no metric knn") == 2 and "BYOL" not in out and "MoCo" not in out
    assert cli.main(["leaderboard", str(folder), "--metric", "loss"]) == 2
    assert "metric 'loss' is not known; choose one of: knn, linear_10" in capsys.readouterr().err
    with pytest.raises(ValueError, match="metric 'loss' is not known; choose one of: knn, linear_10"):
        leaderboard.tables(leaderboard.read([folder])[0], "loss")


def test_a_place_that_does_not_exist_is_a_question_of_usage(tmp_path, capsys):
    assert cli.main(["leaderboard", str(tmp_path / "nowhere")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
    assert cli.main(["leaderboard", str(tmp_path)]) == 1


# ---- The formats ------------------------------------------------------------------------------------------


@pytest.fixture
def told(write, capsys):
    """What the command prints for two datasets of three rows, one with two seeds."""
    runs = [
        record("SimCLR", 0, 0.4),
        record("SimCLR", 1, 0.5),
        record("BYOL", 0, 0.3),
        record("random", 0, 0.2),
    ]
    runs += [changed(run, "dataset.name", "a | b <i>") for run in runs]
    folder = write(*runs)

    def printed(*arguments) -> str:
        assert cli.main(["leaderboard", str(folder), *arguments]) == 0
        return capsys.readouterr().out

    return printed


def test_json_holds_everything(told):
    whole = json.loads(told("--json"))
    assert whole["metric"] == "knn" and whole["left_out"] == [] and whole["differences"] == ["images"]
    rows = whole["tables"][0]["rows"]
    assert [(row["rank"], row["title"], row["n"]) for row in rows] == [
        (1, "SimCLR", 2),
        (2, "BYOL", 1),
        (3, "random encoder", 1),
    ]
    assert (rows[0]["knn mean"], rows[0]["knn std"]) == (0.45, pytest.approx(0.05 * 2**0.5, abs=1e-14))
    assert rows[1]["knn std"] is None


def test_csv_has_a_line_for_each_row(told):
    lines = list(csv.DictReader(io.StringIO(told("--csv", "--metric", "linear_10"))))
    assert [(line["table"], line["rank"]) for line in lines] == [(t, r) for t in "12" for r in "123"]
    assert float(lines[0]["knn mean"]) == 0.45 and lines[1]["knn std"] == ""
    assert lines[0]["seeds"] == "0; 1" and lines[2]["recipe"] == "" and float(lines[0]["memory"]) == 1e9
    assert {line["images"] for line in lines} == {"toys train", "a | b <i> train"}


class Cells(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.open, self.rows, self.words = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        self.rows[-1:] = [row + (tag in ("td", "th")) for row in self.rows[-1:]]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_html_is_whole_and_escaped(told):
    page = Cells(told("--html"))
    assert not page.open and len(page.rows) == 8 and len(set(page.rows)) == 1
    assert any("a | b <i> train: 1000 images" in word for word in page.words)


def test_markdown_has_as_many_cells_in_each_line(told):
    lines = [line for line in told("--markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 3)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "| 1 | SimCLR | 3 | 2 | 45.0 ± 7.1 | 35.0 ± 7.1 | 2.0 | 100 | 1.0 | CPU, 2 cores, bf16 |" in lines


def test_plain_text_is_aligned(told):
    text = told()
    heads = next(line for line in text.splitlines() if "method" in line)
    row = next(line for line in text.splitlines() if "SimCLR" in line)
    assert heads.index("device") == row.index("CPU") and heads.index("method") == row.index("SimCLR")
    assert "kNN: kNN, k 20" in text and "torch 2.9" in text


def test_numbers_that_are_no_shares_are_left_as_they_are(board):
    runs = [changed(record(), "metrics.knn.value", 123.456), record("BYOL")]
    (table,) = board(*runs)
    assert "123.5" in leaderboard.text([table]) and "50.0" not in leaderboard.text([table])


# ---- Into a file, and README.md ----------------------------------------------------------------------------


def test_what_stands_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter é\n", encoding="utf-8")
    for _ in range(2):  # again changes nothing
        README["put_into"](page, "new", "results")
        assert page.read_text(encoding="utf-8") == f"before\n{START}\nnew\n{END}\nafter é\n"


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", 2 * START])
def test_a_file_without_its_two_markers_stays_as_it_is(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have the line <!-- results --> once"):
        README["put_into"](page, "new", "results")
    assert page.read_text() == text


def test_readme_has_the_leaderboard_first_and_the_lessons_runs_after_it(tmp_path):
    own = record("MyMoCo")
    for name in ("knn_random", "linear_10_random"):
        own["metrics"][name] = {"value": 0.2, "protocol": "x"}
    (tmp_path / "03-toys-class.json").write_text(json.dumps({**own, "epochs": 3}))
    lessons = README["own_runs"](tmp_path)
    assert "| 03-toys-class | MoCo v2 | toys, 32 px |" in lessons
    (tmp_path / "leaderboard").mkdir()
    for seed in (0, 1):
        (tmp_path / "leaderboard" / f"simclr-toys-{seed}.json").write_text(json.dumps(record(seed=seed)))
    whole = README["methods_tables"](tmp_path)
    assert whole.startswith("### toys train: 1000 images") and whole.endswith(lessons)
    assert "| 1 | SimCLR | 3 | 2 | 50.0 ± 0.0 |" in whole and "MyMoCo" not in whole
    (tmp_path / "leaderboard" / "byol-toys-0.json").write_text("{")
    with pytest.raises(Exception, match="byol-toys-0.json is damaged"):
        README["methods_tables"](tmp_path)


def test_the_time_to_half_is_counted_to_the_first_epoch_that_reaches_it(tmp_path):
    images = {"name": "imagenette", "split": "train", "size": 48, "images": 1000, "fingerprint": "abc"}
    rows = [{"epoch": epoch, "seconds": 30.0, "knn": knn} for epoch, knn in enumerate((0.4, 0.5, 0.49), 1)]
    quick = record(dataset=images, history=rows, epochs=3)
    lower = [{**row, "knn": row["knn"] - 0.1} for row in rows]
    slow = record("BYOL", dataset=images, history=lower, epochs=3)
    unwatched = record("MoCo", dataset=images, epochs=3)
    last = {"epoch": 4, "seconds": 30.0, "knn": 0.6}
    history = [{**row, "seconds": 9.0} for row in lower] + [last]
    later = record(dataset=images, history=history, epochs=3, seed=1)
    runs = {"quick": quick, "later": later, "slow": slow, "unwatched": unwatched}
    for name, one in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one), encoding="utf-8")
    _, _, *lines = README["time_table"](tmp_path).splitlines()
    assert lines == [  # of the seeds, the one that took least: 4 · 7 batches of 128 beside 2 · 7
        "| SimCLR | 3 | 2 | 2, 4 | 4 | 0.9 | CPU, 2 cores, bf16 |",
        "| BYOL | 3 | 1 | not; 40.0% | – | – | – |",
    ]
    assert README["time_table"](tmp_path, "imagewoof") == ""


# ---- The chart ---------------------------------------------------------------------------------------------


def test_the_chart_shows_every_mean_with_its_spread_and_name(board, tmp_path):
    runs = [record("SimCLR", s, 0.4 + 0.1 * s, seconds=60.0 * (2 + s)) for s in (0, 1)]
    runs += [record("BYOL", 0, 0.42), record("random", 0, 0.2)]
    runs += [changed(run, "dataset.name", "photos") for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.leaderboard(board(*runs))
        figure.savefig(tmp_path / "chart.png")
    assert len(figure.axes) == 2
    for axis in figure.axes:
        assert "minutes" in axis.get_xlabel() and axis.get_ylabel() == "kNN accuracy (%)" and axis.get_title()
        assert [text.get_text() for text in axis.texts] == ["random encoder"]
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["SimCLR", "BYOL"]
        centres = sorted((c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in axis.containers)
        assert np.allclose(centres, [(2.0, 42), (2.0, 45)])
        low, high = axis.get_ylim()
        assert low < 20 and high > 45 + 100 * np.std([0.4, 0.5], ddof=1)
    plt.close("all")


def test_many_records_are_read_without_torch_or_matplotlib(tmp_path):
    """What costs time is what is imported; a thousand such records take about a second."""
    for seed in range(1000):
        (tmp_path / f"{seed}.json").write_text(json.dumps(record(seed=seed, knn=0.3 + seed / 10_000)))
    code = (
        "import sys\nfrom ssl_lessons.cli import main\ncode = main(['leaderboard', sys.argv[1], '--json'])\n"
    )
    code += "heavy = {'torch', 'matplotlib', 'papermill', 'IPython'} & set(sys.modules)\n"
    code += "sys.exit(f'loaded {heavy}' if heavy else code)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)["tables"]
    (row,) = table["rows"]
    assert row["n"] == 1000 and row["knn mean"] == pytest.approx(0.3 + 0.0999 / 2)
