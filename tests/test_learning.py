"""Each method learns: short runs on Shapes end well above the untrained encoder, judged on images never seen.

MoCo's is in test_moco_whole.py. The two methods without negatives learn more slowly, and are asked for less:
the bars stand some points below what was measured (SimCLR +19, relational +17, BYOL +14, SimSiam +10).
"""

import pytest
import torch

from ssl_lessons import BYOL, Relational, SimCLR, SimSiam, evaluate, images, networks, pretrain
from ssl_lessons.methods.simclr import RECIPES

VIVID = RECIPES["lesson"].policy  # colour says nothing about the class of a drawn shape
RUNS = {  # images, epochs, batch, side of a view, points of kNN above the untrained encoder, recipe fields
    SimCLR: (2000, 5, 64, 48, 15, {}),
    Relational: (2000, 5, 32, 32, 12, {"policy": VIVID, "views": 8}),
    BYOL: (4000, 8, 128, 48, 9, {"policy": VIVID, "policy_prime": VIVID}),
    SimSiam: (4000, 8, 128, 48, 5, {"policy": VIVID, "head": (1024, 1024), "predictor_hidden": 256}),
}


@pytest.mark.parametrize("method", RUNS, ids=lambda method: method.__name__)
def test_a_short_run_on_shapes_beats_the_untrained_encoder(method):
    count, epochs, batch, side, points, fields = RUNS[method]
    train = images.load("shapes", "train", 64, progress=False).subset(torch.arange(count))
    test = images.load("shapes", "test", 64, progress=False)
    torch.manual_seed(0)
    learner = method(networks.conv4(), image_size=side, recipe="lesson", **fields)

    def accuracy() -> float:
        return 100 * evaluate.judge(learner.encoder, train, test, side, fractions=())["knn"]["value"]

    untrained = accuracy()
    pretrain(learner, train, epochs=epochs, batch_size=batch, progress="none")
    assert accuracy() > untrained + points
