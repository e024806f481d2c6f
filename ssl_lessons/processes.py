"""Several processes as one: W processes with B images each compute what one computes with W·B images.

Each takes the loss of its own images, in rank order a part of the batch; where an image meets others
(negatives, batch statistics) they come from all processes, with gradients. The mean of the processes'
gradients is then that of one process with the whole batch.
"""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

if hasattr(os, "register_at_fork"):  # not on Windows
    # OpenMP's threads do not live on in a fork (debug_launcher in a notebook): it would wait for them
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


_alone = ContextVar("alone", default=False)


def rank_and_size() -> tuple[int, int]:
    """This process' number among all, from 0, and how many there are; (0, 1) for a process alone."""
    if dist.is_available() and dist.is_initialized() and not _alone.get():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process is one alone: it waits for no other, and draws what one would."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def seed_all(seed: int) -> None:
    """Seed whatever draws without being given a generator: torch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def draws(device: torch.device) -> dict:
    """The state of these generators, in plain values."""
    kind, numbers, *rest = np.random.get_state()
    states = {"cpu": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = (kind, numbers.tolist(), *rest)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_draws(states: dict, device: torch.device) -> None:
    """Put back what `draws` gave; an older version's has no Python's and NumPy's."""
    torch.set_rng_state(states["cpu"])
    if "python" in states:
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def draws_kept(device: torch.device) -> Iterator[None]:
    """What is drawn within changes no draw after it."""
    states = draws(device)
    try:
        yield
    finally:
        set_draws(states, device)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, dim: int) -> Tensor:
        ctx.dim, z = dim, z.contiguous()
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # every process has used every part
        return gradient.chunk(dist.get_world_size(), ctx.dim)[dist.get_rank()], None


def gathered(z: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all processes, of one shape, joined along `dim` in rank order; gradients flow back to
    the process that each part came from, summed over all that used it. Alone: z itself."""
    return z if rank_and_size()[1] == 1 else _Gather.apply(z, dim)


@contextmanager
def accelerated(device: torch.device, precision: str) -> Iterator[Accelerator]:
    """An `Accelerator` for one run. Accelerate keeps one state for the whole process; here each run has its
    own, and what was there before (an outer run's, a user's) is put back."""
    states = (AcceleratorState, PartialState, GradientState)
    before = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        mixed = "no" if precision == "fp32" else precision
        threads = torch.get_num_threads()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "OMP_NUM_THREADS")  # which Accelerate raises
            accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
        torch.set_num_threads(threads)
        accelerator.gradient_accumulation_steps = 1  # `accelerate launch`'s would only divide every loss
        yield accelerator
    finally:
        for state, content in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)


def from_first(value):
    """The first process' value, on all of them: anything that can be pickled."""
    shared = [value]
    if rank_and_size()[1] > 1:
        dist.broadcast_object_list(shared, 0)
    return shared[0]


def of_all(value) -> list:
    """What each process has, in rank order, on all of them: anything that can be pickled."""
    size = rank_and_size()[1]
    values = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    return values


def mean_of_all(numbers: dict[str, float]) -> dict[str, float]:
    """Each number's mean over the processes, on all of them. ValueError: they have other names."""
    parts = of_all(numbers)
    if any(part.keys() != numbers.keys() for part in parts):
        names = " and ".join(str([*part]) for part in parts)
        raise ValueError(f"the processes report {names}: report the same diagnostics in all")
    return {name: sum(part[name] for part in parts) / len(parts) for name in numbers}


def share_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers, whatever seed each was built with."""
    if rank_and_size()[1] == 1:
        return
    for tensor in module.state_dict().values():
        first = tensor.contiguous()  # channels-last weights cannot be sent as they lie
        dist.broadcast(first, 0)
        tensor.copy_(first)


def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over the processes, all in one message; 0 where a process has none.
    (DistributedDataParallel expects one forward pass of one wrapped module; our methods call encoder and
    heads several times.)"""
    size = rank_and_size()[1]
    if size == 1:
        return
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in learnt]).to(learnt[0].device).float()
    dist.all_reduce(used)  # a part of the module may have had work in one process only
    learnt = [parameter for parameter, count in zip(learnt, used.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learnt]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    means = (flat / size).split([gradient.numel() for gradient in gradients])
    for parameter, gradient, mean in zip(learnt, gradients, means, strict=True):
        parameter.grad = gradient.copy_(mean.view(gradient.shape))


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics are those of all processes' images, with gradients, on any device.
    (`nn.SyncBatchNorm` is the same for GPUs, and refuses a CPU.)"""

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # (B, C) or (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        with torch.autocast(x.device.type, enabled=False):
            values = x.to(torch.promote_types(x.dtype, torch.float32))
            count = values.numel() // values.shape[1] * rank_and_size()[1]
            mean = gathered(values.sum(dims)[None]).sum(0) / count  # (C,)
            centred = values - mean.view(shape)
            variance = gathered(centred.square().sum(dims)[None]).sum(0) / count  # (C,)
            normal = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                # momentum None: the plain average over all passes, as in BatchNorm
                moved = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, moved)
                self.running_var.lerp_(variance * (count / (count - 1)), moved)
        return normal.to(x.dtype)


@contextmanager
def joint_batchnorm(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it every BatchNorm of `module` takes its statistics from all processes; names and tensors stay.
    A subclass (timm's with an activation inside, split BatchNorm) keeps those of its own process."""
    kinds = {}
    if rank_and_size()[1] > 1:
        kinds = {m: type(m) for m in module.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)}
    for layer in kinds:
        layer.__class__ = nn.SyncBatchNorm if device.type == "cuda" else JointBatchNorm
        layer.process_group = None  # SyncBatchNorm's: all processes
    try:
        yield
    finally:
        for layer, kind in kinds.items():
            layer.__class__ = kind
            del layer.process_group
