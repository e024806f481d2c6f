"""Recipes: the published values, overrides by name, and errors that list what is known."""

import pytest
import torch

from ssl_lessons import networks
from ssl_lessons.methods import recipes
from ssl_lessons.methods.base import Recipe, choose
from ssl_lessons.methods.moco import RECIPES, MoCo, MoCoRecipe

PUBLISHED = {  # RECIPES.md, in the words of the recipe's fields
    "moco_v1": dict(temperature=0.07, queue=65536, momentum=0.999, head=(128,), schedule="step")
    | dict(optimizer="sgd", lr=0.03, lr_batch=256, sgd_momentum=0.9, weight_decay=1e-4, warmup=0)
    | dict(symmetric=False, batch_size=256, epochs=200),
    "moco_v2": dict(temperature=0.2, queue=65536, momentum=0.999, head=(None, 128), schedule="cosine")
    | dict(optimizer="sgd", lr=0.03, lr_batch=256, sgd_momentum=0.9, weight_decay=1e-4, warmup=0)
    | dict(final_lr=0, symmetric=False, batch_size=256),
    "small_data": dict(temperature=0.1, queue=4096, momentum=0.99, head=(128,), splits=8, batch_size=512)
    | dict(optimizer="sgd", lr=0.06, lr_batch=512, weight_decay=5e-4, schedule="cosine", warmup=0),
    "tutorial": dict(temperature=0.05, queue=8192, momentum=0.999, head=(100, 50, 25), batch_size=256)
    | dict(lr=1e-3, lr_batch=None, final_lr=0.01, weight_decay=1e-6, symmetric=False),
}
CROPS = {"moco_v1": (0.2, 1.0), "moco_v2": (0.2, 1.0), "small_data": (0.08, 1.0)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_hold_the_published_values(name):
    recipe = RECIPES[name]
    assert {field: getattr(recipe, field) for field in PUBLISHED[name]} == PUBLISHED[name]
    assert recipe.name == name and recipe.source
    if name in CROPS:
        assert recipe.policy.crop_scale == CROPS[name]
        assert recipe.policy.blur_p == (0.5 if name == "moco_v2" else 0)


# The other four methods: Imagenette's from lightly's benchmark, the papers' from their official codes.
_LIGHTLYS = dict(optimizer="sgd", lr=0.06, lr_batch=256, sgd_momentum=0.9, weight_decay=5e-4, batch_size=256)
_LIGHTLYS |= dict(schedule="cosine", warmup=0, final_lr=0)
_LARS = dict(optimizer="lars", lr_batch=256, warmup=10, schedule="cosine", plain_norms=True, sgd_momentum=0.9)
_ADAM = dict(optimizer="adam", lr=1e-3, lr_batch=None, schedule="constant", weight_decay=0, warmup=0)
OTHERS = {
    ("SIMCLR", "paper"): dict(lr=0.3, weight_decay=1e-6, head=(None, 128), head_norm=True, temperature=0.1)
    | _LARS,
    ("SIMCLR", "v2"): dict(lr=0.3, weight_decay=1e-6, head=(None, None, 128), head_norm=True) | _LARS,
    ("SIMCLR", "small_data"): dict(temperature=0.5, head=(None, 128)) | _LIGHTLYS,  # 512–512–128
    ("RELATIONAL", "paper"): dict(views=32, batch_size=64, hidden=256, focal=True, gamma=2, alpha=0.5)
    | _ADAM,
    ("RELATIONAL", "small_data"): dict(hidden=256, focal=False, batch_size=64) | _ADAM,  # the short script
    # the official code has a rate, a momentum and a decay for each number of epochs: 1000 and 100 of them
    ("BYOL", "paper"): dict(lr=0.2, momentum=0.996, weight_decay=1.5e-6, epochs=1000) | _LARS,
    ("BYOL", "paper_100"): dict(lr=0.45, momentum=0.99, weight_decay=1e-6, epochs=100) | _LARS,
    ("BYOL", "small_data"): dict(momentum=0.99, momentum_schedule="constant") | _LIGHTLYS,
    ("SIMSIAM", "paper"): dict(lr=0.05, lr_batch=256, sgd_momentum=0.9, weight_decay=1e-4, optimizer="sgd")
    | dict(schedule="cosine", warmup=0, final_lr=0, head=(2048,) * 3, predictor_hidden=512, batch_size=512),
    ("SIMSIAM", "small_data"): dict(head=(2048, 2048), predictor_hidden=512) | _LIGHTLYS,
}
POLICIES = {  # crop scale, jitter, its probability, greyscale, blur, solarize
    ("SIMCLR", "paper"): ((0.08, 1), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0),
    ("SIMCLR", "v2"): ((0.08, 1), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0),
    ("SIMCLR", "small_data"): ((0.08, 1), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0),  # half the strength
    ("RELATIONAL", "paper"): ((0.08, 1), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0, 0),
    ("BYOL", "paper"): ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1, 0),
    ("BYOL", "paper_100"): ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1, 0),
    ("SIMSIAM", "paper"): ((0.2, 1), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0),
}


@pytest.mark.parametrize(("method", "name"), OTHERS)
def test_the_other_methods_recipes_hold_the_published_values(method, name):
    recipe, published = getattr(recipes, method)[name], OTHERS[method, name]
    assert {field: getattr(recipe, field) for field in published} == published
    assert recipe.name == name and recipe.source


@pytest.mark.parametrize(("method", "name"), POLICIES)
def test_the_papers_recipes_augment_as_published(method, name):
    def numbers(p):
        return p.crop_scale, p.jitter, p.jitter_p, p.grey_p, p.blur_p, p.solarize_p

    recipe, published = getattr(recipes, method)[name], POLICIES[method, name]
    assert numbers(recipe.policy) == published
    if method == "BYOL":  # T′: little blur, some solarization
        assert numbers(recipe.policy_prime) == (*published[:4], 0.1, 0.2)
        assert (recipe.head, recipe.predictor_hidden, recipe.momentum_schedule) == (
            (4096, 256),
            4096,
            "cosine",
        )
        assert recipe.normalisation == "batch"


@pytest.mark.parametrize("method", ["SIMCLR", "MOCO", "RELATIONAL", "BYOL", "SIMSIAM"])
def test_every_method_has_recipes_for_small_data_and_for_runs_of_minutes(method):
    known = getattr(recipes, method)
    assert {"small_data", "short"} <= known.keys()
    assert all(name == recipe.name and recipe.source for name, recipe in known.items())
    assert known["short"].source.startswith("ours")


def test_moco_v2s_head_is_as_wide_as_its_encoder():
    m = MoCo(networks.Conv4((4, 4, 4, 20)), image_size=16, queue=32)
    sizes = [(x.in_features, x.out_features) for x in m.projector if isinstance(x, torch.nn.Linear)]
    assert sizes == [(20, 20), (20, 128)] and m.queue.shape == (32, 128)
    assert not any(isinstance(x, torch.nn.BatchNorm1d) for x in m.projector)


def test_unknown_recipes_fields_and_layers_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"'moco_v3' is not known; choose one of: {', '.join(RECIPES)}"):
        MoCo(networks.conv4(), recipe="moco_v3")
    with pytest.raises(ValueError, match="recipe 'moco_v2' has no field 'tau'.*queue, momentum, temperature"):
        MoCo(networks.conv4(), tau=0.2)
    with pytest.raises(ValueError, match=r"'avgpool' is not in the network; .*blocks\.3"):
        MoCo(networks.conv4(), layer="avgpool")


def test_overrides_make_a_copy():
    changed = choose(RECIPES, "moco_v2", queue=7)
    assert (changed.queue, RECIPES["moco_v2"].queue) == (7, 65536)
    assert isinstance(changed, MoCoRecipe) and changed.override(queue=65536) == RECIPES["moco_v2"]
    with pytest.raises(
        ValueError, match="recipe 'mine' has no field 'queue'; choose from: name, source, optim"
    ):
        Recipe("mine", "a test").override(queue=7)
