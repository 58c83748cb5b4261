"""How the gradients of several processes meet: torch's DistributedDataParallel, or FSDP2 for networks that do not fit one device.

One process needs neither. The mean over the whole batch is the same in every case; with two logical shards it is the same to the last bit
on one process and on two, since a + b = b + a and halving is exact. Beyond two, torch's order of summation decides the last bits.

Reference: Li et al., 2020, arXiv:2006.15704 (DDP); Zhao et al., 2023, arXiv:2304.11277 (FSDP).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddpm.denoiser import NetworkDenoiser, Twice
from ddpm.objective import Draws, Loss
from ddpm.training.distributed.world import World


class Pass(nn.Module):
    """The losses (B,) of one pass, as the module whose gradients are shared."""

    def __init__(self, denoiser: NetworkDenoiser, loss: Loss) -> None:
        super().__init__()
        self.denoiser, self.loss = denoiser, loss

    def forward(self, x0: Tensor, cond: dict[str, Tensor] | None, draws: Draws, again: bool = False) -> Tensor:
        """x0 (B, *D) in the space diffused in -> loss (B,); again: of the network that is shown its first prediction."""
        return self.loss(Twice(self.denoiser) if again else self.denoiser, x0, cond, draws)


class Gradients:
    """Runs the passes of a step on this rank; after `meet` the gradients are the mean over all ranks.

    own: the network is a person's, whose parameters may not all be used in every step.
    """

    def __init__(self, denoiser: NetworkDenoiser, loss: Loss, world: World, *, own: bool = False) -> None:
        self.denoiser, self.world = denoiser, world
        self.sharded = world.size > 1 and is_sharded(denoiser)
        self.passes: nn.Module = Pass(denoiser, loss)
        self.copies = [parameter for parameter in self.passes.parameters() if not is_part(parameter)] if self.sharded else []
        if world.size > 1 and not self.sharded:
            self.passes = nn.parallel.DistributedDataParallel(self.passes, find_unused_parameters=own)

    @contextmanager
    def share(self, last: bool) -> Iterator[None]:
        """Around each pass; only the last one of a step sends anything."""
        if isinstance(self.passes, nn.parallel.DistributedDataParallel) and not last:
            with self.passes.no_sync():
                yield
            return
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(self.denoiser.network, FSDPModule)
            self.denoiser.network.set_requires_gradient_sync(last)
        yield

    def meet(self) -> None:
        """After the last pass: the mean over ranks of the gradients that neither DDP nor FSDP sees to."""
        if not self.copies:
            return
        given = [parameter.grad for parameter in self.copies]
        flat = [torch.zeros_like(p).view(-1) if g is None else g.reshape(-1) for p, g in zip(self.copies, given, strict=True)]
        met = [flat[0].new_tensor(float(gradient is not None)).view(1) for gradient in given]  # on how many ranks each was used
        *sums, used = self.world.sum(torch.cat([*flat, *met])).split([*map(len, flat), len(met)])
        for parameter, total, ranks in zip(self.copies, sums, used.tolist(), strict=True):
            if ranks:
                parameter.grad = (total / self.world.size).view_as(parameter)


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is this rank's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has spread its parameters."""
    return any(is_part(parameter) for parameter in module.parameters())


def shard(denoiser: NetworkDenoiser, world: World) -> None:
    """Spread the parameters of the network over the ranks with FSDP2, part by part; before the optimizer and the average are made.

    Each rank then holds 1/size of weights, gradients, averages and optimizer states, and gathers a part (`parts`) when it is its turn.
    Single numbers, and the loss's few parameters, stay whole on every rank (`Gradients.meet`). Weights still on the host come to the device
    a part at a time. FSDP hands a part copies of the lists it is called with: what it changes in them is lost.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = denoiser.network
    mesh = init_device_mesh(world.device.type, (world.size,))
    single = {parameter for parameter in network.parameters() if parameter.ndim == 0}
    for module in (*parts(network), network):
        if any(parameter.ndim for parameter in module.parameters()):
            # resharded even at the root: between two passes everybody else sees what is spread
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=single)


def uneven(shards: int, size: int, batch: int, *, asked: bool) -> str:
    """What to do where FSDP's processes would run different numbers of passes: in each they gather weights from one another.

    asked: the number of shards is a setting of now, not the run's.
    """
    fewer, more = (max(n for n in range(1, size) if shards % n == 0), min(n for n in range(size + 1, shards + 1) if shards % n == 0))
    numbers = [str(n) for n in (shards - shards % size, shards - shards % size + size) if n <= batch]
    got = f"got {shards}" if asked else f"the run has {shards}"
    return (
        f"logical_shards: {got}, which {size} processes cannot share evenly, as fsdp needs; "
        f"use {fewer} or {more} processes, --logical-shards {' or '.join(numbers)}{'' if asked else ' (other noise from here on)'}, "
        "or --parallel ddp"
    )


def parts(network: nn.Module) -> list[nn.Module]:
    """The modules of a network that are gathered one at a time: the largest without a list of modules inside, with a hundredth of the
    parameters or more; what is left is gathered for the whole pass. None where weights are shared: two parts with one weight would come
    apart.
    """
    lists = (nn.ModuleList, nn.ModuleDict)
    counts = [sum(p.numel() for _, p in network.named_parameters(remove_duplicate=once)) for once in (True, False)]

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if any(isinstance(inner, lists) for inner in child.modules()):
                yield from below(child)
            elif sum(parameter.numel() for parameter in child.parameters()) * 100 >= counts[0]:
                yield child

    return list(below(network)) if counts[0] == counts[1] else []


def clip(parameters: Sequence[nn.Parameter], limit: float, world: World) -> Tensor:
    """Scale gradients so that the norm of all together, over all ranks, is at most `limit`; returns the norm before that, a scalar."""
    if not any(map(is_part, parameters)):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts, copies = [local(g) for g in found if is_part(g)], [g for g in found if not is_part(g)]
    square = world.sum(sum((part.square().sum() for part in parts), start=torch.zeros((), device=world.device, dtype=found[0].dtype)))
    norm = sum((gradient.square().sum() for gradient in copies), start=square).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*parts, *copies):
        gradient.mul_(scale)
    return norm


def mixed(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer of both sharded and whole parameters take them one by one: torch's fused kernels refuse the mixture."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(map(is_part, held)) and not all(map(is_part, held)):
        for group in (optimizer.defaults, *optimizer.param_groups):
            group |= {key: False for key in ("fused", "foreach") if key in group}


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every rank, any other as it is; called by all ranks."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[operator]


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors, sharded ones put together on the host of the main rank one by one; empty on the others, which call it too."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if world.main:
            found[name] = full.cpu() if is_part(tensor) else full
    return found


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor in the layout of another: the same, or this rank's part of it."""
    if not is_part(target):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    value = value.to(target.device, target.dtype)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def template(denoiser: NetworkDenoiser) -> NetworkDenoiser:
    """A copy without the memory of the weights, made before `shard`, for `filled`."""
    copied = copy.deepcopy(denoiser)
    for parameter in copied.parameters():
        parameter.data = parameter.data.new_empty(0)
    return copied


@torch.no_grad()
def filled(plain: NetworkDenoiser, sharded: NetworkDenoiser, weights: Mapping[str, Tensor]) -> NetworkDenoiser:
    """`template`'s copy on the host of every rank, with these weights put together and all else as the sharded denoiser has it."""
    for name, parameter in plain.named_parameters():
        parameter.data = whole(weights[name]).to("cpu", copy=True)
    buffers = dict(sharded.named_buffers())
    for name, buffer in plain.named_buffers():
        buffer.copy_(buffers[name])
    plain.recode(sharded.codec)
    plain.vector_codec = sharded.vector_codec
    plain.residuals = sharded.residuals
    return plain
