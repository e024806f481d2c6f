"""Exercise 07.3, does the judge peek: its solution, cases, and known mistakes."""

import torch

from ssl_lessons import evaluate


def ways(judge, a, y, b, y_test):
    """(predictions change with the test labels, and without the second half of the test images)."""
    usual, half = judge(a, y, b, y_test), len(b) // 2
    others = judge(a, y, b, (y_test + 1) % (y_test.max() + 1))
    fewer = judge(a, y, b[:half], y_test[:half])
    return not torch.equal(usual, others), not torch.equal(usual[:half], fewer)


def by_accuracy(judge, a, y, b, y_test):
    wrong = (y_test + 1) % (y_test.max() + 1)
    usual, others = judge(a, y, b, y_test), judge(a, y, b, wrong)
    return bool((usual == y_test).sum() != (others == wrong).sum())


def by_training_labels(judge, a, y, b, y_test):
    return not torch.equal(judge(a, y, b, y_test), judge(a, (y + 1) % (y.max() + 1), b, y_test))


def by_new_images(judge, a, y, b, y_test):
    return not torch.equal(judge(a, y, b, y_test), judge(a, y, torch.randn_like(b), y_test))


peek_mistakes = {
    "only the test labels are changed: a judge that standardises with all test images is not caught": (
        lambda *given: ways(*given)[0]
    ),
    "only the test images are changed: a judge that reads an image's own label is not caught": (
        lambda *given: ways(*given)[1]
    ),
    "peeking in one way is enough: `or`, not `and`": lambda *given: all(ways(*given)),
    "the answer is the wrong way round: True means that the judge peeks": lambda *given: (
        not any(ways(*given))
    ),
    "accuracies are compared: with wrong test labels every judge's falls; compare predictions": by_accuracy,
    "the training labels are changed: an honest judge must follow those": by_training_labels,
    "the judged images themselves are changed: keep some, and change the others": by_new_images,
}


def peek_case(seed):
    places = 1.5 * torch.randn(4, 8)
    y, y_test = torch.arange(200) % 4, torch.arange(120) // 30  # the test images are sorted by class
    a, b = places[y] + torch.randn(200, 8), places[y_test] + torch.randn(120, 8)
    columns = [torch.randperm(8)[:4] for _ in range(40)]

    def honest(a, y, b, y_test):
        return evaluate.knn(a, y, b, 5)

    def chosen_on_train(a, y, b, y_test):
        held = torch.arange(len(y)) % 5 == 0
        right = [(evaluate.knn(a[~held], y[~held], a[held], k) == y[held]).sum().item() for k in (1, 5, 20)]
        return evaluate.knn(a, y, b, (1, 5, 20)[right.index(max(right))])

    def chosen_on_test(a, y, b, y_test):
        answers = [evaluate.knn(a[:, part], y, b[:, part], 5) for part in columns]
        return max(answers, key=lambda answer: (answer == y_test).sum().item())

    def standardized_with_test(a, y, b, y_test):
        mean, std = torch.cat([a, b]).mean(dim=0), torch.cat([a, b]).std(dim=0)
        return evaluate.knn((a - mean) / std, y, (b - mean) / std)

    def own_label(a, y, b, y_test):  # where the first number of the feature is large
        return torch.where(b[:, 0] > 0, y_test, evaluate.knn(a, y, b))

    def batch_normalized(a, y, b, y_test):
        return evaluate.knn(a - a.mean(dim=0), y, b - b.mean(dim=0))

    judges = [honest, chosen_on_train, chosen_on_test, standardized_with_test, own_label, batch_normalized]
    calls = []

    def judge(*given):
        calls.append(tuple(x.clone() for x in given))
        return judges[seed](*given)

    judge.calls = calls
    return judge, a, y, b, y_test


def what_was_asked(result, judge, a, y, b, y_test):
    """The answer; whether the training data were changed; whether no judged image was left as it is."""
    trained = any(not torch.equal(call[1], y) for call in judge.calls)
    shown = {tuple(row) for row in b.tolist()}
    strange = any(not shown & {tuple(row) for row in call[2].tolist()} for call in judge.calls)
    return [result, trained, strange]


EXERCISE = {
    "solution": lambda *given: any(ways(*given)),
    "case": peek_case,
    "mistakes": peek_mistakes,
    "observe": what_was_asked,
    "seeds": 6,
}
