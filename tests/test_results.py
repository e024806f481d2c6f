"""What data/results/README.md says was measured is what the committed records say."""

from pathlib import Path

import pytest

from ssl_lessons.records import Run

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "data" / "results").glob("[0-9][0-9]-*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_its_numbers_were_made(path):
    record = Run.open(path).record
    assert record["dataset"]["fingerprint"] and record["dataset"]["origin"]
    assert record["device"] and record["seed"] is not None and record["versions"]["torch"]
    assert record["lesson_seconds"] > 0
    for name, metric in record["metrics"].items():
        assert 0 <= metric["value"] <= 1, name
        assert metric["protocol"], name


def test_moco_beats_the_random_encoder_by_eight_points_on_imagenette():
    metrics = Run.open(ROOT / "data" / "results" / "03-imagenette-class.json").record["metrics"]
    assert metrics["knn"]["value"] >= metrics["knn_random"]["value"] + 0.08
