"""What data/results/README.md says was measured is what the committed records say."""

from pathlib import Path

import pytest

from ssl_lessons import lab
from ssl_lessons.batch import leaderboard

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "data" / "results").glob("[0-9][0-9]-*.json"))


def test_the_page_shows_the_records_and_nothing_else():
    text = (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- results -->")[1].split("<!-- /results -->")[0].strip()
    assert shown == leaderboard.readme(), "run `ssl-lessons leaderboard --into data/results/README.md`"
    assert len(shown.splitlines()) >= 4, "at least one run each on Imagenette and Imagewoof"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_its_numbers_were_made(path):
    record = lab.results(path.stem)[path.stem].record
    assert record["dataset"]["fingerprint"] and record["dataset"]["origin"]
    assert record["device"] and record["seed"] is not None and record["versions"]["torch"]
    assert record["lesson_seconds"] > 0
    for name, metric in record["metrics"].items():
        assert 0 <= metric["value"] <= 1, name
        assert metric["protocol"], name


def test_moco_beats_the_random_encoder_by_eight_points_on_imagenette():
    metrics = lab.results("03-imagenette-class")["03-imagenette-class"].record["metrics"]
    assert metrics["knn"]["value"] >= metrics["knn_random"]["value"] + 0.08
