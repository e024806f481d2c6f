"""Classifiers on frozen features: weighted nearest neighbours, a linear probe, and the table of their errors.

Tensors in, tensors out. A test label never enters here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

K, T = 20, 0.07  # solo-learn's kNN; MoCo's and lightly's monitors use 200 and 0.1
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # L2 weights among which a linear probe chooses
FEW = 2000  # images: below, a linear probe averages its choice over five draws


def knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int = K, t: float = T) -> Tensor:
    """Classes of `test_x` by weighted nearest neighbours: Wu et al. 2018 (arXiv:1805.01978), section 3.4.

    Each of the k training images most alike by cosine votes for its class with weight exp(cosine / t).

    Args:
        train_x, test_x: float (N, D) and (M, D), of any length. train_y: int64 (N,), classes from 0.
    Returns:
        int64 (M,).
    Raises:
        ValueError: k outside 1 … N, or t not above 0.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k {k} must lie between 1 and the {len(train_x)} training images")
    if t <= 0:
        raise ValueError(f"t {t} must be above 0; {T} is usual")
    train_x, classes = F.normalize(train_x.float(), dim=1), int(train_y.max()) + 1
    predicted = []
    for block in F.normalize(test_x.float(), dim=1).split(1024):  # (1024, N) similarities at a time
        similarity, nearest = (block @ train_x.T).topk(k, dim=1)  # (b, k)
        # exp((s − s_max)/t) orders classes as exp(s/t) does, and cannot overflow
        weight = ((similarity - similarity[:, :1]) / t).exp()
        votes = torch.zeros(len(block), classes).scatter_add_(1, train_y[nearest], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def stratified(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Indices of a random `fraction` of each class (at least one image of each), sorted; int64."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} must be above 0 and at most 1")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(1, round(fraction * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


@torch.enable_grad()
def _fit(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: mean cross-entropy + decay·‖W‖²/2 by full-batch L-BFGS.

    At most 100 iterations: under a decay of about 1e-3 that stops short of the minimum, as if the decay were
    a little stronger.
    """
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    lbfgs = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    lbfgs.step(loss)
    return weight.detach(), bias.detach()


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """Classes (M,) of `test_x` by logistic regression on frozen features, and the L2 weight it chose.

    Features are standardised by the training set's mean and deviation. The L2 weight is the one of `DECAYS`
    that does best on a held-out fifth of the *training* images (the mean of five such draws where they are
    few, and one draw says little); then all of them are fitted again.
    """
    mean, std = train_x.mean(dim=0), train_x.std(dim=0).clamp_min(1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    classes = int(train_y.max()) + 1
    right = dict.fromkeys(DECAYS, 0)
    for draw in range(5 if len(train_y) < FEW else 1):
        held = torch.zeros(len(train_y), dtype=torch.bool)
        held[stratified(train_y, 0.2, seed + draw)] = True
        if (~held).sum() < classes:  # one image a class: nothing to hold out
            break
        for decay in DECAYS:
            weight, bias = _fit(train_x[~held], train_y[~held], classes, decay)
            predicted = (train_x[held] @ weight.T + bias).argmax(dim=1)
            right[decay] += (predicted == train_y[held]).sum().item()
    best = max(reversed(DECAYS), key=right.get)  # of equals, the strongest
    weight, bias = _fit(train_x, train_y, classes, best)
    return (test_x @ weight.T + bias).argmax(dim=1), best


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often an image of class i was taken for class j: int64 (C, C), rows the true classes.

    Args:
        predicted, labels: int64 (N,), classes from 0 up to `classes` - 1.
    """
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    return counts.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)


def per_class(matrix: Tensor) -> Tensor:
    """Accuracy of each class of a confusion matrix (C, C): float (C,) in [0, 1], NaN without images."""
    return matrix.diag() / matrix.sum(dim=1)
