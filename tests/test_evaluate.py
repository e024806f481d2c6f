"""Judging: features that leave the encoder as it was, kNN and linear probes against other people's code."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ssl_lessons import evaluate, images, networks, records, shapes
from ssl_lessons.images import ImageStore, to_device
from ssl_lessons.views import centre


def store(count=60, seed=0, split="train", labels=True) -> ImageStore:
    pixels, classes = shapes.draw(count, 24, seed)
    rows = torch.from_numpy(pixels).permute(0, 1, 3, 2).contiguous()  # (N, H, 3, W)
    found = torch.from_numpy(classes) if labels else None
    return ImageStore(rows.transpose(1, 2), found, shapes.CLASSES, "shapes", split, f"print-{seed}")


def encoder(seed=0) -> networks.Encoder:
    torch.manual_seed(seed)
    return networks.tap(networks.Conv4((4, 8, 8, 12)), image_size=16)


def clusters(count, classes=4, width=6, spread=0.6, seed=0, places=0):
    """Points around a centre per class: float (N, D) and labels."""
    middle = torch.randn(classes, width, generator=torch.Generator().manual_seed(places)) * 2
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return middle[labels] + spread * torch.randn(count, width, generator=generator), labels


# ------------------------------------------------------------------------------------------------ features


def test_features_are_the_encoders_answer_to_the_whole_image_in_eval_mode():
    f, images = encoder(), store(30)
    with torch.no_grad():
        f.train()(torch.randn(8, 3, 16, 16) + 1)  # statistics worth using
    found = evaluate.features(f, images, 16, device="cpu")
    with torch.no_grad():
        expected = f.eval()(centre(images.batch(torch.arange(30)), 16))
    assert found.dtype == torch.float32 and found.shape == (30, 12) and not found.requires_grad
    assert_close(found, expected)
    assert_close(evaluate.features(f, images, 16, device="cpu", batch=7), found)  # whatever the batch


def test_features_leave_the_encoder_unchanged_to_the_bit_and_put_its_modes_back():
    f = encoder().train()
    f.network.blocks[1].eval()  # a mixture must come back as a mixture
    f.network.blocks[0][0].weight.requires_grad_(False)

    def state():
        modes = [(m.training, [p.requires_grad for p in m.parameters()]) for m in f.modules()]
        return modes, {name: t.clone() for name, t in f.state_dict().items()}, torch.get_rng_state()

    before = state()
    evaluate.features(f, store(20), 16, device="cpu", precision="auto")
    after = state()
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in after[1])
    assert torch.equal(before[2], after[2])


def test_features_put_the_modes_back_after_an_error_too():
    f = encoder().train()
    f.network.blocks.append(nn.Linear(3, 3))  # will not fit
    with pytest.raises(ValueError, match="fails"):
        evaluate.features(f, store(4), 16, device="cpu")
    assert all(module.training for module in f.modules())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu_bring_the_encoder_home():
    f, images = encoder(), store(20)
    expected = evaluate.features(f, images, 16, device="cpu")
    assert_close(evaluate.features(f, images, 16, device="cuda"), expected, rtol=1e-2, atol=1e-3)
    assert {p.device.type for p in f.parameters()} == {"cpu"}
    row = torch.arange(3).expand(4, 3)  # its rows share memory, which cannot be pinned
    assert torch.equal(to_device(row, torch.device("cuda")).cpu(), row)
    state = torch.cuda.get_rng_state()
    evaluate.random_encoder("conv4", 32)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_raw_pixels_can_be_judged_as_well():
    pixels = evaluate.features(networks.tap(nn.Flatten(), image_size=8), store(5), 8, device="cpu")
    assert pixels.shape == (5, 3 * 8 * 8)


# ----------------------------------------------------------------------------------------------------- kNN


def literal_knn(train_x, train_y, test_x, k, t):
    """Wu et al. 2018, section 3.4, one image and one neighbour at a time, in float64."""
    train_x, test_x, answers = train_x.double().numpy(), test_x.double().numpy(), []
    for x in test_x:
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train_x]
        votes = np.zeros(int(train_y.max()) + 1)
        for i in np.argsort(cosines)[::-1][:k]:
            votes[train_y[i]] += math.exp(cosines[i] / t)
        answers.append(int(votes.argmax()))
    return torch.tensor(answers)


@pytest.mark.parametrize(("k", "t"), [(1, 0.07), (20, 0.07), (20, 1.0), (120, 0.1)])
def test_knn_agrees_with_a_literal_loop_and_with_scikit_learn(k, t):
    train_x, train_y = clusters(120, spread=2.5)
    test_x, test_y = clusters(150, spread=2.5, seed=1)
    found = evaluate.knn(train_x, train_y, test_x, k, t)
    assert 0.4 < (found == test_y).float().mean() < 0.98  # a task on which a wrong vote shows
    assert torch.equal(found, literal_knn(train_x, train_y, test_x, k, t))

    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn, of the test extra, is missing")
    weigh = {"metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / t)}
    theirs = neighbors.KNeighborsClassifier(k, **weigh).fit(train_x.double().numpy(), train_y.numpy())
    assert found.tolist() == theirs.predict(test_x.double().numpy()).tolist()


def test_knn_weights_decide_between_one_near_and_two_far_neighbours():
    train_x, train_y = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[5.0, 0.0]])  # length is no matter: cosines 1, 0.6, 0.6
    assert evaluate.knn(train_x, train_y, query, k=3, t=0.1).item() == 0  # e^10 > 2 e^6
    assert evaluate.knn(train_x, train_y, query, k=3, t=10.0).item() == 1  # e^0.1 < 2 e^0.06


def test_knn_does_not_overflow_and_works_through_blocks():
    train_x, train_y = clusters(50)
    test_x, test_y = clusters(2100, seed=2)
    assert (evaluate.knn(train_x, train_y, test_x, k=5, t=1e-4) == test_y).float().mean() > 0.95


@pytest.mark.parametrize(("k", "t", "message"), [(0, 1, "k is 0"), (-1, 1, "k is -1"), (5, 0, "t is 0")])
def test_knn_refuses_numbers_without_a_meaning(k, t, message):
    train_x, train_y = clusters(50)
    with pytest.raises(ValueError, match=message):
        evaluate.knn(train_x, train_y, train_x, k, t)


# ---------------------------------------------------------------------------------------- parts of the labels


@pytest.mark.parametrize(
    ("fraction", "counts"), [(1.0, [100, 37, 3]), (0.1, [10, 4, 1]), (0.01, [1, 1, 1]), (0.5, [50, 18, 2])]
)
def test_stratified_takes_the_same_share_of_each_class(fraction, counts):
    labels = torch.tensor([0] * 100 + [1] * 37 + [2] * 3)[torch.randperm(140)]
    rows = evaluate.stratified(labels, fraction)
    assert torch.bincount(labels[rows]).tolist() == counts
    assert torch.equal(rows, rows.unique())  # sorted, none twice


def test_stratified_depends_on_its_seed_alone():
    labels = torch.arange(200) % 10
    state = torch.get_rng_state()
    one, again, other = (evaluate.stratified(labels, 0.3, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.1])
def test_stratified_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match=f"fraction {fraction} must be above 0"):
        evaluate.stratified(torch.arange(10), fraction)


# -------------------------------------------------------------------------------------------- linear probe


def test_the_probe_separates_what_a_line_separates():
    train_x, train_y = clusters(200, spread=0.3)
    test_x, test_y = clusters(300, spread=0.3, seed=1)
    scales = torch.logspace(-3, 3, 6)  # features of very different size: they are standardised
    predicted, decay = evaluate.linear_probe(train_x * scales + 5, train_y, test_x * scales + 5)
    assert (predicted == test_y).float().mean() > 0.98
    assert decay in evaluate.DECAYS


def test_the_probe_does_not_memorise_noise():
    """With more features than images and mostly noise, it must choose a strong weight decay."""
    signal, train_y = clusters(60, classes=2, width=2, spread=1.5)
    noise = torch.randn(60, 200, generator=torch.Generator().manual_seed(3))
    _, decay = evaluate.linear_probe(torch.cat([signal, noise], 1), train_y, torch.zeros(1, 202))
    assert decay >= 1e-2


def test_the_test_set_has_no_say_in_the_choice():
    train_x, train_y = clusters(150, spread=2.5)
    test_x, _ = clusters(100, spread=2.5, seed=1)
    assert "test_y" not in inspect.signature(evaluate.linear_probe).parameters  # it never sees test labels
    predicted, decay = evaluate.linear_probe(train_x, train_y, test_x)
    strange = torch.cat([test_x, 1e4 * torch.randn(50, 6)])
    with_strange, same = evaluate.linear_probe(train_x, train_y, strange)
    assert same == decay
    assert torch.equal(with_strange[:100], predicted)  # nor do test images change each other's answers


def test_judging_twice_with_other_test_labels_gives_the_same_probe(monkeypatch):
    monkeypatch.setattr(evaluate, "DECAYS", (1e-2, 1e-1))  # two are enough here, and quick
    f, train, test = encoder(), store(100), store(40, seed=1, split="test")
    one = evaluate.judge(f, train, test, 16, device="cpu")
    test.labels = (test.labels + 1) % 10
    two = evaluate.judge(f, train, test, 16, device="cpu")
    assert [m.get("l2") for m in one.values()] == [m.get("l2") for m in two.values()]
    assert one["linear_100"]["value"] != two["linear_100"]["value"]


def test_the_probe_agrees_with_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, of the test extra, is missing")
    train_x, train_y = clusters(160, spread=2.0)
    test_x, _ = clusters(400, spread=2.0, seed=1)
    mean, std = train_x.mean(0), train_x.std(0)
    x, y = ((train_x - mean) / std), ((test_x - mean) / std)

    def theirs(decay):  # its C is 1 / (N · decay); neither punishes the bias
        model = linear.LogisticRegression(C=1 / (160 * decay), max_iter=5000, tol=1e-8)
        return model.fit(x.double().numpy(), train_y.numpy())

    for decay in (1e-3, 1e-2, 1e-1):
        weight, bias = evaluate._fit(x, train_y, 4, decay)
        ours = (y @ weight.T + bias).softmax(dim=1).double().numpy()
        assert np.abs(ours - theirs(decay).predict_proba(y.double().numpy())).max() < 0.005
    predicted, decay = evaluate.linear_probe(train_x, train_y, test_x)
    agree = predicted.numpy() == theirs(decay).predict(y.double().numpy())
    assert agree.mean() > 0.98  # the weakest decays stop a little before the minimum


def test_the_probe_works_with_one_image_a_class_and_where_gradients_are_off():
    train_x, train_y = clusters(4, spread=0.1)
    test_x, test_y = clusters(80, spread=0.1, seed=1)
    with torch.no_grad():
        predicted, _ = evaluate.linear_probe(train_x, train_y, test_x)
    assert torch.equal(predicted, test_y)


# --------------------------------------------------------------------------------------- the whole judgement


def test_judge_names_each_number_and_says_how_it_was_measured(monkeypatch):
    monkeypatch.setattr(evaluate, "DECAYS", (1e-2, 1e-1))  # two are enough here, and quick
    f, train, test = encoder(), store(200), store(50, seed=1, split="test")
    metrics = evaluate.judge(f, train, test, 16, device="cpu", fractions=(1.0, 0.3), seed=4)
    assert list(metrics) == ["knn", "linear_100", "linear_30"]
    where = "backbone, 16 px, shapes train (200) → test (50)"
    assert metrics["knn"]["protocol"] == f"weighted kNN, k 20, t 0.07, {where}"
    x, y = (evaluate.features(f, s, 16, device="cpu") for s in (train, test))
    near = evaluate.knn(x, train.labels, y)
    assert metrics["knn"]["value"] == (near == test.labels).double().mean().item()
    assert np.trace(metrics["knn"]["confusion"]) == (near == test.labels).sum()
    rows = evaluate.stratified(train.labels, 0.3, 4)
    predicted, decay = evaluate.linear_probe(x[rows], train.labels[rows], y, 4)
    assert metrics["linear_30"]["value"] == (predicted == test.labels).double().mean().item()
    probe = f"linear probe (L-BFGS, L2 chosen on train), 30% of the labels, {where}"
    assert metrics["linear_30"]["protocol"] == probe  # the same for every seed
    assert (metrics["linear_30"]["seeds"], metrics["linear_30"]["l2"]) == ([4], [decay])
    assert "linear_10" in evaluate.judge(f, train, test, 16, device="cpu", fractions=(0.1,))


def test_several_draws_of_few_labels_give_a_mean_and_a_deviation(monkeypatch):
    monkeypatch.setattr(evaluate, "DECAYS", (1e-2, 1e-1))
    f, train, test = encoder(), store(200), store(50, seed=1, split="test")
    metric = evaluate.judge(f, train, test, 16, device="cpu", fractions=(1.0, 0.2), draws=3, seed=5)
    few, whole = metric["linear_20"], metric["linear_100"]
    single = [evaluate.judge(f, train, test, 16, device="cpu", fractions=(0.2,), seed=s) for s in (5, 6, 7)]
    assert few["draws"] == [each["linear_20"]["value"] for each in single] and few["seeds"] == [5, 6, 7]
    assert len(set(few["draws"])) > 1
    assert few["value"] == pytest.approx(np.mean(few["draws"]))
    assert few["std"] == pytest.approx(np.std(few["draws"], ddof=1))
    assert "3 draws" in few["protocol"] and "std" not in whole and "draws" not in whole["protocol"]


def test_the_confusion_matrix_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn, of the test extra, is missing")
    train, test = store(40), store(200, seed=1, split="test")
    predicted = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))  # class 9: never said
    found = evaluate._metric([predicted], train, test, "by chance")
    assert found["confusion"] == metrics.confusion_matrix(test.labels, predicted, labels=range(10)).tolist()
    assert found["value"] == (predicted == test.labels).double().mean()


def test_labels_of_two_splits_are_matched_by_name(one_thread):
    """The test folder lacks a class and has its own order: numbers alone would count wrong answers right."""
    train, test = store(100), store(60, seed=1, split="test")
    f = encoder()
    plain = evaluate.judge(f, train, test, 16, device="cpu", fractions=())["knn"]
    watched = evaluate.knn_monitor(train, test, 16, "cpu")(f)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    test.classes = tuple(shapes.CLASSES[i] for i in order.tolist())
    test.labels = order.argsort()[test.labels]
    assert evaluate.judge(f, train, test, 16, device="cpu", fractions=())["knn"] == plain
    assert evaluate.knn_monitor(train, test, 16, "cpu")(f) == watched
    part = test.subset((test.labels < 4).nonzero()[:, 0])
    part.classes = part.classes[:4]
    assert evaluate.labels_of(part, train.classes).tolist() == order[part.labels].tolist()
    part.classes = ("cat", *part.classes[1:])
    with pytest.raises(ValueError, match=r"shapes \(test\) has images of cat, but the other split's classes"):
        evaluate.judge(f, train, part, 16, device="cpu")


def test_features_are_kept_by_the_fingerprint_of_weights_images_and_size(tmp_path):
    f, images = encoder(), store(30)

    def cached(encoder=f, images=images, size=16, precision="fp32"):
        return evaluate.features(encoder, images, size, "cpu", precision, cache=tmp_path)

    first = cached()
    assert torch.equal(first, evaluate.features(f, images, 16, "cpu"))
    (kept,) = tmp_path.glob("*.pt")
    marked = first + 1
    records.write_state(kept, {"features": marked})
    assert torch.equal(cached(), marked)  # read, not computed again
    others = [cached(encoder=encoder(1)), cached(images=store(30, seed=1)), cached(size=20)]
    others.append(cached(encoder=networks.tap(f.network, "blocks.1", 16)))  # the same weights, another layer
    f.network.blocks[0][1].running_mean += 0.5  # a BatchNorm statistic counts as much as a weight
    others.append(cached())
    assert len(list(tmp_path.glob("*.pt"))) == 6
    assert not any(torch.equal(other, marked) for other in others)


# ------------------------------------------------------------------------------ fine-tuning, report


def frozen(f):
    return {name: t.clone() for name, t in f.state_dict().items()}, [m.training for m in f.modules()]


def unchanged(f, before) -> bool:
    after = frozen(f)
    same = all(torch.equal(before[0][name], after[0][name]) for name in after[0])
    return same and before[1] == after[1]


def test_a_report_asks_everything_and_leaves_the_encoder_as_it_was_to_the_bit(monkeypatch, one_thread):
    monkeypatch.setattr(evaluate, "DECAYS", (1e-2, 1e-1))
    f, train, test = encoder().train(), store(200), store(50, seed=1, split="test")
    before = frozen(f)
    epochs = {1.0: 1, 0.1: 2}
    found = evaluate.report(f, train, test, 16, device="cpu", fine_tune_epochs=epochs, draws=2)
    assert [*found] == ["knn", "linear_100", "linear_10", "linear_1", "finetune_100", "finetune_10"]
    assert unchanged(f, before)
    for name, metric in found.items():
        assert 0 <= metric["value"] <= 1 and metric["protocol"], name
        assert np.sum(metric["confusion"]) == 50, name
        assert ("std" in metric) == (name in ("linear_10", "linear_1", "finetune_10")), name
    assert "2 epochs, batches of 20), 10% of the labels, 2 draws" in found["finetune_10"]["protocol"]


def test_fine_tuning_moves_the_whole_copy_and_learns(monkeypatch, one_thread):
    f, train, test = encoder(), store(300), store(100, seed=1, split="test")
    trained = []
    original = evaluate.pretrain

    def watched(method, *args, **settings):
        trained.append((frozen(method.encoder), method))
        return original(method, *args, **settings)

    monkeypatch.setattr(evaluate, "pretrain", watched)
    before = frozen(f)
    same = {"device": "cpu", "seed": 1}
    metric = evaluate.fine_tune(f, train, test, 16, epochs=40, lr=5e-3, **same)
    ((start, student),) = trained
    assert unchanged(f, before) and student.encoder is not f
    assert all(torch.equal(start[0][n], before[0][n]) for n in start[0])  # it starts where the encoder is
    moved = [n for n, p in student.encoder.named_parameters() if not torch.equal(p, start[0][n])]
    assert len(moved) == len(list(f.parameters()))  # and every weight goes on learning
    assert metric["value"] > evaluate.fine_tune(f, train, test, 16, epochs=1, lr=1e-5, **same)["value"] + 0.1
    again = evaluate.fine_tune(f, train, test, 16, epochs=40, lr=5e-3, **same)
    assert again == metric


def test_fine_tuning_on_a_part_sees_only_that_part(monkeypatch):
    f, train, test = encoder(), store(200), store(20, seed=1, split="test")
    parts = []
    original = evaluate.pretrain
    monkeypatch.setattr(
        evaluate, "pretrain", lambda m, part, **s: parts.append(part) or original(m, part, **s)
    )
    evaluate.fine_tune(f, train, test, 16, fraction=0.1, epochs=1, draws=2, seed=3, device="cpu")
    expected = [train.subset(evaluate.stratified(train.labels, 0.1, seed)).fingerprint for seed in (3, 4)]
    assert [part.fingerprint for part in parts] == expected


# ------------------------------------------------------------------------------------------ real photographs


def test_knn_and_the_probe_agree_with_scikit_learn_on_features_of_photographs():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, of the test extra, is missing")
    neighbors = pytest.importorskip("sklearn.neighbors")
    try:
        train, test = (
            images.load("imagenette", split, 48, limit=n, download=False, progress=False)
            for split, n in (("train", 1500), ("test", 500))
        )
    except images.DataError as error:
        pytest.skip(f"Imagenette is not at hand: {error}")
    f = evaluate.random_encoder("resnet18", 32, "imagenet")
    x, y = (evaluate.features(f, s, 32, device="cpu") for s in (train, test))
    found = evaluate.knn(x, train.labels, y)
    weigh = {"metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
    theirs = neighbors.KNeighborsClassifier(20, **weigh).fit(x.double().numpy(), train.labels.numpy())
    assert (found.numpy() == theirs.predict(y.double().numpy())).mean() > 0.995  # ties of float32
    predicted, decay = evaluate.linear_probe(x, train.labels, y)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    model = linear.LogisticRegression(C=1 / (len(x) * decay), max_iter=5000)
    model.fit(((x - mean) / std).double().numpy(), train.labels.numpy())
    agree = predicted.numpy() == model.predict(((y - mean) / std).double().numpy())
    assert agree.mean() > 0.97  # L-BFGS stops after 100 iterations here


def test_judging_without_labels_is_refused_by_name():
    with pytest.raises(ValueError, match=r"shapes \(unlabeled\) has no labels"):
        evaluate.judge(encoder(), store(20, labels=False, split="unlabeled"), store(20), 16, device="cpu")


def test_the_monitor_is_knn_on_a_part_and_leaves_the_run_alone():
    f, train, test = encoder().train(), store(80), store(40, seed=1, split="test")
    monitor = evaluate.knn_monitor(train, test, 16, "cpu", most=30)
    state = torch.get_rng_state()
    first = monitor(f)
    assert list(first) == ["knn"] and 0 <= first["knn"] <= 1 and monitor(f) == first
    assert f.training and torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------- baselines


def test_a_random_encoder_comes_from_its_seed_and_leaves_the_generators_alone(monkeypatch):
    def refuse(seed):
        raise AssertionError("the GPUs' generators were set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    state = torch.get_rng_state()
    one, again, other = (evaluate.random_encoder("conv4", 32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [f.network.blocks[0][0].weight for f in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_random_encoder_has_the_same_stem_and_layer():
    f = evaluate.random_encoder("resnet18", 64, "small", layer="layer2")
    assert (f.width, f.network.conv1.kernel_size) == (128, (3, 3))


def test_a_trained_encoder_comes_back_from_its_run(tmp_path):
    plain = networks.build("conv4", 32)
    f = networks.tap(plain, "blocks.2", 32)
    f.train()(torch.randn(4, 3, 32, 32))  # statistics of its own
    network = {"name": "conv4", "image_size": 32, "stem": None, "layer": "blocks.2"}
    run = records.Run.create(tmp_path / "run", network=network)
    run.save_encoder(plain)
    images = store(6)
    expected = evaluate.features(f, images, 32, device="cpu")
    for source in (run, tmp_path / "run", str(tmp_path / "run")):
        back = evaluate.load_encoder(source)
        assert (back.layer, back.width) == ("blocks.2", 128)
        assert torch.equal(evaluate.features(back, images, 32, device="cpu"), expected)


def test_a_run_that_does_not_name_its_network_is_an_error_with_a_way_out(tmp_path):
    run = records.Run.create(tmp_path / "run")
    with pytest.raises(records.RecordError, match="does not say which network"):
        evaluate.load_encoder(run)
    with pytest.raises(records.RecordError, match="no record at .*elsewhere"):
        evaluate.load_encoder(tmp_path / "elsewhere")


def test_published_weights_are_small_load_by_name_and_are_refused_when_they_are_others(tmp_path):
    torch.manual_seed(0)
    plain = networks.build("conv4", 32)
    networks.tap(plain, image_size=32).train()(torch.randn(4, 3, 32, 32))  # statistics of its own
    network = {"name": "conv4", "image_size": 32, "stem": None, "layer": "blocks.2"}
    run = records.Run.in_memory(network=network, seed=3)
    path = run.publish(tmp_path / "weights", "mine", plain)
    assert path.stat().st_size < 0.6 * sum(4 * t.numel() for t in plain.state_dict().values())
    back = evaluate.pretrained("mine", tmp_path / "weights")
    assert (back.layer, back.width) == ("blocks.2", 128)
    for name, value in back.network.state_dict().items():
        assert value.dtype == plain.state_dict()[name].dtype
        assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert records.Run.open(path.with_suffix(".json")).record["seed"] == 3
    with pytest.raises(records.RecordError, match="no weights 'yours' in .*; there are: mine"):
        evaluate.pretrained("yours", tmp_path / "weights")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(records.RecordError, match="mine.safetensors has sha256 .*, not its record's"):
        evaluate.pretrained("mine", tmp_path / "weights")


WEIGHTS = sorted(evaluate.weights_folder().glob("*.safetensors"))


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_the_projects_weights_are_those_of_their_records(path):
    encoder = evaluate.pretrained(path.stem)
    record = records.Run.open(path.with_suffix(".json")).record
    assert path.stat().st_size < 6e6 and record["metrics"]["knn"]["value"] > 0
    assert encoder(torch.zeros(1, 3, record["view_size"], record["view_size"])).isfinite().all()


def test_the_supervised_baseline_learns_its_batch():
    torch.manual_seed(0)
    m = evaluate.Supervised(networks.Conv4((4, 8, 8, 12)), 10, 16, lr=3e-3).train()
    images = store(20)
    seen = [centre(images.batch(torch.arange(20)), 16)]
    assert len(m.policies) == 1 and m.supervised and m.recipe.lr == 3e-3
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
    for _ in range(40):
        loss, diagnostics = m(seen, labels=images.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0 and diagnostics["accuracy"] > 0.7
    with pytest.raises(ValueError, match="recipe 'supervised' has no field 'queue'"):
        evaluate.Supervised(networks.conv4(), 10, 16, queue=3)
