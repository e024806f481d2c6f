"""What data/results/README.md says was measured is what the committed records say."""

import json
from pathlib import Path

import pytest

from ssl_lessons.records import RecordError, Run

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "data" / "results").glob("[0-9][0-9]-*.json"))
ROWS = sorted(
    [
        *(ROOT / "data" / "results").glob("*/*.json"),  # the leaderboard's, and those of a GPU
        *(ROOT / "data" / "weights").glob("*.json"),
    ]
)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_its_numbers_were_made(path):
    record = Run.open(path).record
    assert record["dataset"]["fingerprint"] and record["dataset"]["origin"]
    assert record["device"] and record["seed"] is not None and record["versions"]["torch"]
    assert record["lesson_seconds"] > 0
    for name, metric in record["metrics"].items():
        assert 0 <= metric["value"] <= 1, name
        assert metric["protocol"], name


@pytest.mark.parametrize("path", RECORDS + ROWS, ids=lambda path: path.stem)
def test_a_changed_number_in_a_committed_record_is_noticed(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    seconds = json.loads(text)["seconds"]
    changed = tmp_path / "record.json"
    changed.write_text(
        text.replace(f'"seconds": {seconds}', f'"seconds": {seconds + 1}', 1), encoding="utf-8"
    )
    with pytest.raises(RecordError, match="is damaged"):
        Run.open(tmp_path)


def test_moco_beats_the_random_encoder_by_eight_points_on_imagenette():
    metrics = Run.open(ROOT / "data" / "results" / "03-imagenette-class.json").record["metrics"]
    assert metrics["knn"]["value"] >= metrics["knn_random"]["value"] + 0.08
