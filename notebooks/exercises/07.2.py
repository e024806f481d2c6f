"""Exercise 07.2, did it stay frozen: its solution, cases, and known mistakes."""

import torch

from ssl_lessons import networks


def frozen_with(clone=True, same=torch.equal, part="state_dict", modes="all", call=True):
    """The detector with one of its parts exchanged."""

    def tensors(encoder):
        found = getattr(encoder, part)()
        found = dict(found.items() if part == "state_dict" else found)
        return {name: tensor.detach().clone() if clone else tensor for name, tensor in found.items()}

    def mode(encoder):
        kept = {"all": encoder.modules(), "root": [encoder], "none": []}[modes]
        return [module.training for module in kept]

    def detect(encoder, use):
        before, was = tensors(encoder), mode(encoder)
        if call:
            use(encoder)
        after = tensors(encoder)
        return all(same(before[name], after[name]) for name in before) and was == mode(encoder)

    return detect


def by_gradients(encoder, use):
    use(encoder)
    return not any(parameter.requires_grad for parameter in encoder.parameters())


frozen_mistakes = {
    "without a clone the copy changes with the encoder: it is compared with itself": frozen_with(clone=False),
    "the BatchNorm statistics are not compared: they are buffers, not parameters": (
        frozen_with(part="named_parameters")
    ),
    "the weights are not compared: they are parameters, not buffers": frozen_with(part="named_buffers"),
    "the modes are not compared: an encoder left in train mode is not as it was": frozen_with(modes="none"),
    "only the outermost module's mode is compared; a BatchNorm inside can be in train mode": (
        frozen_with(modes="root")
    ),
    "allclose overlooks small changes; to the bit is torch.equal": frozen_with(same=torch.allclose),
    "`use` was not called between the two snapshots": frozen_with(call=False),
    "requires_grad says whether gradients are computed, not whether anything has changed": by_gradients,
    "the answer is the wrong way round: True means unchanged": (
        lambda encoder, use: not frozen_with()(encoder, use)
    ),
}


def frozen_case(seed):
    batch = torch.randn(4, 3, 32, 32)

    def look(f):
        with torch.no_grad():
            f(batch)

    def nudge(f):
        with torch.no_grad():
            next(f.parameters()).mul_(1 + 1e-6)

    def learn(f):
        with torch.no_grad():
            next(f.parameters()).mul_(0.9)

    def norm_in_train(f):
        next(m for m in f.modules() if isinstance(m, torch.nn.BatchNorm2d)).train()

    uses = [look, lambda f: look(f.train()), lambda f: (look(f.train()), f.eval())]
    uses += [lambda f: f.train(), norm_in_train, nudge, learn, lambda f: f.train().eval()]
    return networks.conv4().eval().requires_grad_(seed % 2 == 1), uses[seed]


EXERCISE = {
    "solution": frozen_with(),
    "case": frozen_case,
    "mistakes": frozen_mistakes,
    "seeds": 8,
}
