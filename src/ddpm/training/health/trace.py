"""Which layer made the first number that is not finite: the failing pass once more, watched module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn


def _tensors(values: object) -> Iterator[Tensor]:
    """The floating-point tensors within tuples, lists and mappings."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def finite(values: object) -> bool:
    """Whether every floating-point tensor within is finite in every entry."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(values))


def _largest(values: object) -> float:
    return max((tensor.detach().abs().max().item() for tensor in _tensors(values) if tensor.numel()), default=0.0)


def trace(module: nn.Module, again: Callable[[], Tensor]) -> tuple[str, Tensor]:
    """Run `again`, which calls `module`, and say in words where the first number that is not finite appeared; also what it returned.

    A layer is named by its path, and blamed where its input is finite and its output is not. Buffers, such as running statistics, end as
    they began.
    """
    found: list[str] = []
    handles: list[torch.utils.hooks.RemovableHandle] = []
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]

    def watch(layer: nn.Module, label: str) -> None:
        def before(_: nn.Module, given: object, named: object) -> None:
            if not found and not finite((given, named)):
                found.append(f"it is in the input of {label} already, so the code that calls that made it")

        def after(_: nn.Module, given: object, named: object, made: object) -> None:
            if not found and not finite(made):
                found.append(f"it came first out of {label}, whose input is finite (up to {_largest((given, named)):.3g})")

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))

    for name, layer in module.named_modules():
        watch(layer, f"{name} ({type(layer).__name__})" if name else "the denoiser")
    try:
        result = again()
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in buffers:
            buffer.data.copy_(value)  # unseen by autograd, which may still go back through them
    if not found:
        chance = "the same pass again is finite: chance, or the machine"
        found.append(chance if finite(result) else "every layer is finite, so the loss itself made it")
    return found[0], result


def bad_gradients(module: nn.Module, losses: Tensor) -> list[str]:
    """Names of the parameters for which d mean(losses)/d parameter is not finite; nothing is left in `.grad`."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), [parameter for _, parameter in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None and not finite(gradient)]
