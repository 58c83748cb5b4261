"""A denoiser while it is only asked: in evaluation mode, its weights held as the machine multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.networks import fused

Call = Callable[[Tensor], Tensor]
Part = TypeVar("Part", bound=nn.Module)


@runtime_checkable
class HasLayout(Protocol):
    """A network that lays its tensors out in memory as it is told."""

    layout: torch.memory_format


@contextmanager
def laid_out(module: nn.Module, last: bool) -> Generator[None]:
    """Within this context the networks in `module` that have a layout keep pictures channels last, where that is wanted."""
    networks = [part for part in module.modules() if isinstance(part, HasLayout)] if last else []
    before = [network.layout for network in networks]
    try:
        for network in networks:
            network.layout = torch.channels_last
        yield
    finally:
        for network, layout in zip(networks, before, strict=True):
            network.layout = layout


@runtime_checkable
class Packs(Protocol):
    """A layer of (x, embedding) that says itself what to do with x when its weights are made only once."""

    def packed(self) -> Call:
        """x -> the layer's output, in bfloat16."""
        ...


def frozen(part: Part) -> Part:
    """The module with buffers for parameters: part of a model's state, but nothing that is trained, averaged or counted."""
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return part.eval()


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Within this context the module is in evaluation mode: no dropout."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def serving(denoiser: nn.Module, device: torch.device, autocast: torch.dtype | None) -> Generator[None]:
    """Within this context the denoiser is in evaluation mode and runs in `autocast`; its weights, which must not change, are cast once.

    On a CPU in bfloat16 they are also laid out once as its kernels want them, and pictures go channels last, in float32 where there is a
    group norm for them: the same products of the same numbers, summed in another order. Calls that want gradients, and parts that switch
    autocast off, go the ordinary way; so does a network within `networks.blocks.reference`, or compiled.
    """
    with evaluating(denoiser), torch.autocast(device.type, autocast, enabled=autocast is not None):
        free = device.type == "cpu" and not any(map(_chosen, denoiser.modules()))
        if free and autocast == torch.bfloat16:
            with packed(denoiser):
                yield
        else:  # autocast keeps what it has cast until this ends
            with laid_out(denoiser, free and fused.library() is not None):
                yield


def _chosen(part: nn.Module) -> bool:
    """Whether somebody has chosen how the part is executed: by the textbook, or compiled."""
    return getattr(part, "plain", False) is True or vars(part).get("_compiled_call_impl") is not None


@contextmanager
def packed(module: nn.Module) -> Generator[None]:
    """Within this context every linear layer and 2D convolution of `module` multiplies bfloat16 weights laid out for the CPU."""
    layers = [layer for layer in module.modules() if _packable(layer)]
    with laid_out(module, True):
        try:
            for layer in layers:
                layer.forward = partial(_call, layer.forward, _pack(layer))
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)


def _packable(layer: nn.Module) -> bool:
    """Whether the layer's product is all it does, and its weights are float32 and its own, not parts that FSDP puts together, nor buffers:
    a frozen decoder's, which runs in float32.
    """
    weights = list(layer.parameters())
    if "forward" in layer.__dict__ or not weights or not all(type(one) is nn.Parameter and one.dtype == torch.float32 for one in weights):
        return False
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear or isinstance(layer, Packs)


def _call(plain: Callable[..., Tensor], fast: Call, x: Tensor, *rest: Tensor) -> Tensor:
    return plain(x, *rest) if torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu") else fast(x)


def _pack(layer: nn.Module) -> Call:
    if isinstance(layer, nn.Linear):
        return _linear(layer)
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer)
    assert isinstance(layer, Packs)
    return layer.packed()


def lowered(tensor: Tensor | None) -> Tensor | None:
    """In bfloat16, as autocast would have it."""
    return None if tensor is None else tensor.detach().bfloat16()


def _linear(layer: nn.Linear) -> Call:
    weight, bias = layer.weight.detach().bfloat16(), lowered(layer.bias)
    return lambda x: F.linear(x.bfloat16(), weight, bias)


def _convolution(layer: nn.Conv2d) -> Call:
    """The convolution by oneDNN, with weights in the order of the kernel it chooses for the size of the first call of each size."""
    weight, bias = layer.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last), lowered(layer.bias)
    how = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    ready: dict[torch.Size, Tensor] = {}

    def convolution(x: Tensor) -> Tensor:
        size = x.shape[2:]
        if size not in ready:
            ready[size] = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x.bfloat16(), ready[size], bias, *how, "none", [], "")

    return convolution
