"""The log of trials and the experiments: tables say what the lines say, and verdicts follow rules."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_lessons import Run, evaluate, images
from ssl_lessons.methods.byol import BYOL

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks" / "grids"))

import evening  # noqa: E402
import experiments  # noqa: E402
import trials  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def lines(name: str) -> list[dict]:
    path = ROOT / "data" / "results" / name
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def test_the_logs_are_what_their_lines_say():
    logged = lines("trials.jsonl")
    assert trials.table(logged) == (ROOT / "data" / "results" / "TRIALS.md").read_text(encoding="utf-8")
    assert {line["method"] for line in logged} == {"simclr", "moco", "relational", "byol", "simsiam"}
    if experimented := lines("experiments.jsonl"):
        text = (ROOT / "data" / "results" / "EXPERIMENTS.md").read_text(encoding="utf-8")
        assert experiments.table(experimented) == text


def test_the_held_out_fifth_is_of_the_training_images_and_the_same_each_time(monkeypatch):
    opened = []
    load = images.load
    monkeypatch.setattr(images, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    (train, held), (_, again) = (trials.held_out("shapes", 16) for _ in range(2))
    assert {split for _, split, _ in opened} == {"train"}
    assert (len(train), len(held)) == (3200, 800) and torch.equal(held.images, again.images)
    assert held.labels.bincount().tolist() == [80] * 10 and train.labels.bincount().tolist() == [320] * 10
    shown = {bytes(image.flatten().tolist()) for image in train.images[::7]}
    assert not shown & {bytes(image.flatten().tolist()) for image in held.images}


def test_a_trial_trains_judges_and_tells_all_its_settings(tmp_path):
    settings = {"dataset": "shapes", "size": 16, "view": 16, "network": {"name": "conv4"}, "epochs": 1}
    plan = [{**settings, "method": "simclr", "batch_size": 400, "note": "a batch of 400"}]
    plan += [{**settings, "method": "moco", "batch_size": 400, "note": "no queue", "fields": {"queue": 0}}]
    trials.run_all(plan, tmp_path / "lines.jsonl", workers=1, seconds=600)
    whole, failed = (json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines())
    assert whole["images_seen"] == 3200 and whole["curve"] == [[1, round(whole["knn"], 4)]]
    assert 0 < whole["knn_random"] < 1 and whole["device"] and whole["torch"]
    assert "parameter queue is 0" in failed["error"]
    text = trials.table([whole, failed])
    assert "a batch of 400 (shapes) | 1 | 3 |" in text and "failed: Unknown: parameter queue is 0" in text


def test_fields_and_policies_of_a_trial_reach_the_method():
    policy = {"jitter": [0.1, 0.1, 0.1, 0.0]}
    prime = {"solarize_p": 0.2}
    settings = {**trials.DEFAULTS, "method": "byol", "recipe": "short", "policy": policy}
    method = trials.build({**settings, "fields": {"head": [32, 16], "lr": 0.5}, "policy_prime": prime})
    assert isinstance(method, BYOL) and method.recipe.head == (32, 16) and method.recipe.lr == 0.5
    assert method.policies[0].jitter == (0.1, 0.1, 0.1, 0.0) and method.policies[1].solarize_p == 0.2
    alike = trials.build(settings)
    assert alike.policies[0] == alike.policies[1]


def test_a_trial_may_judge_the_projector_and_compare_by_a_cosine():
    settings = {**trials.DEFAULTS, "network": {"name": "conv4"}, "view": 16, "recipe": "short"}
    simclr = trials.build({**settings, "method": "simclr"})
    image = torch.rand(4, 3, 16, 16)
    behind = trials.judged_network(simclr.eval(), {**settings, "judged": "projector"})
    torch.testing.assert_close(behind(image), simclr.projector(simclr.encoder(image)))
    assert trials.judged_network(simclr, settings) is simclr.encoder
    relational = trials.build({**settings, "method": "relational", "fields": {"ruler": "cosine"}})
    features = torch.eye(2)
    scores = relational.head.score(features, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert scores.tolist() == [5.0, -5.0]  # scale 10, offset -5, cosines 1 and 0


@pytest.mark.parametrize("part", ["stop-gradient", "predictor", "BatchNorm"])
def test_simsiam_loses_the_part_that_is_named_and_no_other(part):
    settings = {**trials.DEFAULTS, "method": "simsiam", "recipe": "short", "network": {"name": "conv4"}}
    settings["view"] = 16
    whole, less = (trials.build({**settings, "fields": fields}) for fields in ({}, {"without": part}))
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    norms = [isinstance(module, torch.nn.BatchNorm1d) for module in less.modules()]
    assert any(norms) == (part != "BatchNorm")
    assert (len([*less.predictor.parameters()]) == 0) == (part == "predictor")
    one, two = whole(views), less(views)
    if part == "stop-gradient":  # the same loss; the gradient is another
        torch.testing.assert_close(one.loss, two.loss, atol=1e-5, rtol=1e-5)
        for found in (one, two):
            found.loss.backward()
        name = "projector.0.weight"
        kept, lost = (dict(method.named_parameters())[name].grad for method in (whole, less))
        assert not torch.allclose(kept, lost, rtol=1e-2)
    with pytest.raises(ValueError, match="SimSiam has no part 'head'; choose stop-gradient, predictor or"):
        trials.build({**settings, "fields": {"without": "head"}})


def test_a_direct_predictor_has_the_correlations_directions():
    torch.manual_seed(0)
    predictor = trials.direct_predictor(4, memory=0.0, epsilon=0.1).train()
    z = torch.randn(512, 4) * torch.tensor([3.0, 2.0, 1.0, 0.1])
    predictor(z)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    expected = vectors * ((values / values.max()).sqrt() + 0.1) @ vectors.T
    torch.testing.assert_close(predictor.matrix, expected, atol=1e-4, rtol=1e-4)
    assert not [*predictor.parameters()]


# ----------------------------------------------------------------------------------------------- experiments


def judged(arm: str, *values: float, alternative: int = 0, **fields) -> list[dict]:
    line = {"note": f"keys: {arm}", "alternative": alternative, "knn_random": 0.3, "fields": fields}
    line |= {"images_seen": 90_000, "device": "a CPU"}
    return [{**line, "knn": value, "seed": seed} for seed, value in enumerate(values)]


def test_an_effect_is_more_than_two_standard_errors_of_the_difference():
    clear = [*judged("0.0", 0.20, 0.21, 0.22), *judged("0.99", 0.50, 0.51, 0.52)]
    found = experiments.arms("keys", clear)
    assert experiments.verdict(found) == "An effect: 0.99 stands 30.0 ± 0.8 points above 0.0."
    vague = [*judged("0.0", 0.40, 0.50, 0.60), *judged("0.99", 0.45, 0.55, 0.60)]
    text = experiments.verdict(experiments.arms("keys", vague))
    assert text.startswith("No effect at this scale: 0.99 is 3.3 ±")
    single = experiments.arms("keys", [*judged("0.0", 0.4), *judged("0.99", 0.5)])
    assert experiments.verdict(single) == ("No verdict with 1 of 3 seeds: 0.99 stands 10.0 points above 0.0.")


def test_arms_in_groups_are_compared_within_their_group():
    some = [*judged("SimCLR, 32", 0.5, 0.5, 0.5), *judged("SimCLR, 512", 0.5, 0.5, 0.51)]
    some += [*judged("BYOL, 32", 0.3, 0.3, 0.31), *judged("BYOL, 512", 0.2, 0.2, 0.2)]
    found = {line["note"].partition(": ")[2]: [] for line in some}
    for line in some:
        found[line["note"].partition(": ")[2]].append(line)
    text = experiments.verdict(found)
    assert text.startswith("SimCLR: no effect at this scale: 512 is 0.3 ±")
    assert "BYOL: an effect: 32 stands 10.3 ±" in text


def test_the_better_of_an_arms_settings_stands_for_it_and_what_was_not_run_is_named():
    one = {"note": "batch: BYOL, 32", "knn_random": 0.3, "images_seen": 90_000, "device": "a CPU", "seed": 0}
    some = [
        {**one, "alternative": n, "knn": knn, "fields": {"lr": lr}}
        for n, knn, lr in ((0, 0.4, 5e-4), (1, 0.5, 1e-3))
    ]
    some += [{**some[0], "note": "batch: BYOL, 512", "knn": 0.3}]
    text = experiments.table(some)
    assert (
        "| BYOL, 32, rate 0.001 | 50.0 | 30.0 | 1 | 90 | a CPU |" in text
        and "| BYOL, 512, rate 0.0005 | 30.0 |" in text
    )
    assert "## Not run yet" in text and "`keys`" in text and "`batch`" not in text.split("Not run yet")[1]


def test_every_arm_of_a_plan_is_a_trial_that_can_be_built():
    plan = experiments.plan([])
    assert len(plan) == len({(trial["note"], trial["alternative"], trial["seed"]) for trial in plan})
    for trial in plan[: len(plan) // len(experiments.SEEDS)]:
        method = trials.build({**trials.DEFAULTS, **trial})
        assert method.recipe.name == "short" and trial["epochs"] >= 1
    with pytest.raises(SystemExit, match="no experiment 'kees'; there are: depth, batch"):
        experiments.plan(["kees"])


# ------------------------------------------------------------------------------------------- the evening run


def test_an_evening_run_ends_in_weights_that_load_and_in_a_row_of_the_table(tmp_path, monkeypatch):
    small = {}
    for split in ("train", "test"):
        small[split] = images.load("shapes", split, 16, limit=300, progress=False)
    monkeypatch.setattr(images, "load", lambda name, split, *a, **k: small[split])
    words = {"method": "simclr", "dataset": "shapes", "view": 16, "size": 16, "seed": 0, "epochs": 1}
    words |= {"out": tmp_path / "runs", "weights": tmp_path / "weights", "device": "cpu", "name": None}
    evening.run(SimpleNamespace(**words))
    encoder = evaluate.pretrained("simclr-shapes", tmp_path / "weights")
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 256)
    record = Run.open(tmp_path / "weights" / "simclr-shapes.json").record
    assert {"knn", "linear_10", "knn_colours", "knn_random"} <= set(record["metrics"])
    row = evening.table(tmp_path / "weights").splitlines()[-1]
    assert row.startswith("| `simclr-shapes` | SimCLR | 1 | 0 | 16 |")
    assert f"{100 * record['metrics']['knn_colours']['value']:.1f}" in row


def test_the_table_of_weights_is_what_its_records_say():
    weights = ROOT / "data" / "weights"
    assert evening.table(weights) == (weights / "README.md").read_text(encoding="utf-8")
    for path in weights.glob("*.safetensors"):
        assert path.stat().st_size < 6e6
        evaluate.pretrained(path.stem)
