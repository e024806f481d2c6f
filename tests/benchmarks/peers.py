"""The peers' training steps, as their documentation composes them: lightly's four methods, byol-pytorch."""

import copy
import time

import torch
from torch import nn

LEARNING_RATE = {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4}


def lightly_method(name: str, network: nn.Module, width: int, size: int):
    """(module, transform, loss(module, views), move(module)) of a method by lightly's parts."""
    from lightly import loss as losses
    from lightly import transforms
    from lightly.models.modules import heads
    from lightly.models.utils import (
        batch_shuffle,
        batch_unshuffle,
        deactivate_requires_grad,
        update_momentum,
    )

    def embed(encoder, head, images):
        return head(encoder(images).flatten(start_dim=1))

    def nothing(module):
        pass

    parts = nn.ModuleDict({"encoder": network})
    if name == "SimCLR":
        parts["head"] = heads.SimCLRProjectionHead(width, width, 128)
        contrast = losses.NTXentLoss(temperature=0.5)

        def simclr(m, views):
            return contrast(*(embed(m["encoder"], m["head"], view) for view in views))

        return parts, transforms.SimCLRTransform(input_size=size, cj_strength=0.5), simclr, nothing
    if name == "SimSiam":
        parts["head"] = heads.SimSiamProjectionHead(width, 2048, 2048)
        parts["predictor"] = heads.SimSiamPredictionHead(2048, 512, 2048)
        distance = losses.NegativeCosineSimilarity()

        def simsiam(m, views):
            z = [embed(m["encoder"], m["head"], view) for view in views]
            p = [m["predictor"](each) for each in z]
            return (distance(p[0], z[1].detach()) + distance(p[1], z[0].detach())) / 2

        return parts, transforms.SimSiamTransform(input_size=size), simsiam, nothing

    if name == "MoCo v2":
        parts["head"] = heads.MoCoProjectionHead(width, 2048, 128)
        contrast = losses.NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        transform = transforms.MoCoV2Transform(input_size=size)

        def one_way(m, query, key):
            q = embed(m["encoder"], m["head"], query)
            with torch.no_grad():
                shuffled, order = batch_shuffle(key)
                k = batch_unshuffle(embed(m["slow_encoder"], m["slow_head"], shuffled), order)
            return contrast(q, k)

        def loss(m, views):
            return (one_way(m, views[0], views[1]) + one_way(m, views[1], views[0])) / 2
    else:
        parts["head"] = heads.BYOLProjectionHead(width, 4096, 256)
        parts["predictor"] = heads.BYOLPredictionHead(256, 4096, 256)
        distance = losses.NegativeCosineSimilarity()
        one, two = (
            view(input_size=size) for view in (transforms.BYOLView1Transform, transforms.BYOLView2Transform)
        )
        transform = transforms.BYOLTransform(view_1_transform=one, view_2_transform=two)

        def loss(m, views):
            p = [m["predictor"](embed(m["encoder"], m["head"], view)) for view in views]
            with torch.no_grad():
                z = [embed(m["slow_encoder"], m["slow_head"], view) for view in views]
            return distance(p[0], z[1]) + distance(p[1], z[0])

    for slow, fast in (("slow_encoder", "encoder"), ("slow_head", "head")):
        parts[slow] = copy.deepcopy(parts[fast])
        deactivate_requires_grad(parts[slow])

    def move(m):
        update_momentum(m["encoder"], m["slow_encoder"], 0.99)
        update_momentum(m["head"], m["slow_head"], 0.99)

    return parts, transform, loss, move


def lightly_steps(name, network, width, size, batch, folder, workers, device, context, steps, warm_up):
    """Seconds of each training step after the warm-up, fed by lightly's loader from the files in `folder`."""
    from lightly.data import LightlyDataset

    parts, transform, loss_of, move = lightly_method(name, network, width, size)
    dataset = LightlyDataset(input_dir=str(folder), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    parts.to(device).train()
    optimizer = torch.optim.SGD([p for p in parts.parameters() if p.requires_grad], **LEARNING_RATE)
    seconds, total = [], 0.0
    started = None
    for step, (views, *_) in enumerate(loader):
        views = [view.to(device, non_blocking=True) for view in views]
        move(parts)
        with context():
            loss = loss_of(parts, views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if step >= warm_up:
            seconds.append(now - started)
        started = now
        if step + 1 == warm_up + steps:
            break
    assert torch.isfinite(total)
    return seconds


def byol_pytorch_steps(network, layer, size, images, device, context, steps, warm_up):
    """Seconds of each step on a batch that is ready: float (B, 3, S, S) in [0, 1] on the device."""
    from byol_pytorch import BYOL

    learner = BYOL(network, image_size=size, hidden_layer=layer).to(device).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4)
    seconds = []
    for step in range(warm_up + steps):
        started = time.perf_counter()
        with context():
            loss = learner(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step >= warm_up:
            seconds.append(time.perf_counter() - started)
    assert torch.isfinite(loss)
    return seconds
