"""The most that could be hoped for: a network's own products run alone, and what the machine does at its best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from clock import Action
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv2d, torch.conv_transpose2d, F.linear, torch.bmm, F.scaled_dot_product_attention)


class Shell(NamedTuple):
    """A tensor's shape and memory layout, and whether it wants a gradient."""

    shape: torch.Size
    last: bool
    grad: bool

    def fill(self, dtype: torch.dtype, grad: bool) -> Tensor:
        """A random tensor like it."""
        made = (torch.randn(self.shape) / 8).to(dtype)
        return (made.contiguous(memory_format=torch.channels_last) if self.last else made).requires_grad_(grad and self.grad)


def _shell(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
    return Shell(value.shape, last, value.requires_grad)


class Recorder(TorchFunctionMode):
    """Notes every convolution and matrix product called within, with shapes, layouts, arguments and which operands want gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], list[Any], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, [_shell(value) for value in args], {key: _shell(value) for key, value in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))


def made_ready(args: list[Any]) -> tuple[Callable[..., Tensor], list[Any]]:
    """A convolution in bfloat16 with its weight in the order of oneDNN's kernel."""
    x, weight, bias, stride, padding, dilation, groups = args
    how = ([*padding], [*stride], [*dilation], groups)
    ready = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, [*x.shape])
    return torch.ops.mkldnn._convolution_pointwise, [x, ready, bias, *how, "none", [], ""]


def bare_products(network: nn.Module, inputs: tuple[Tensor, ...], precision: str, backward: bool, ready: bool = False) -> Action:
    """The network's own convolutions and matrix products, alone: same shapes and layouts, operands already in the precision they run in.

    ready: the weights of convolutions are laid out as the machine's kernels want them beforehand.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with Recorder() as recorder, torch.set_grad_enabled(backward):
        network(*inputs)

    def filled(value: Any) -> Any:
        return value.fill(dtype, backward) if isinstance(value, Shell) else value

    calls = [(f, [filled(v) for v in args], {key: filled(v) for key, v in kwargs.items()}) for f, args, kwargs in recorder.calls]
    if ready:
        calls = [(*made_ready(args), kwargs) if f is torch.conv2d and len(args) == 7 else (f, args, kwargs) for f, args, kwargs in calls]
    with torch.no_grad():
        gradients = [torch.randn_like(f(*args, **kwargs)) / 8 for f, args, kwargs in calls]

    def run() -> None:
        for (f, args, kwargs), gradient in zip(calls, gradients, strict=True):
            if backward:
                wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
                torch.autograd.grad(f(*args, **kwargs), wanted, gradient)
            else:
                with torch.inference_mode():
                    f(*args, **kwargs)

    return run


def machine(precision: str, rounds: int = 7, device: torch.device | None = None) -> dict[str, float]:
    """What this machine reaches: a matrix product and a 3x3 convolution (GFLOP/s), and a copy (GB/s read and written)."""
    dtype, device = torch.bfloat16 if precision == "bf16" else torch.float32, device or torch.device("cpu")
    size, batch = (2048, 16) if device.type == "cpu" else (8192, 1024)
    a, b = torch.randn(size, size).to(device, dtype), torch.randn(size, size).to(device, dtype)
    x = torch.randn(batch, 256, 16, 16).to(device, dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3).to(device, dtype).contiguous(memory_format=torch.channels_last)
    far, near = torch.randn(64 * 2**20, device=device), torch.empty(64 * 2**20, device=device)

    def best(action: Action) -> float:
        seconds: list[float] = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:])

    with torch.inference_mode():
        return {
            "matmul_gflops": round(2 * size**3 / best(lambda: a @ b) / 1e9, 1),
            "conv_gflops": round(2 * batch * 256 * 256 * 9 * 256 / best(lambda: F.conv2d(x, w, padding=1)) / 1e9, 1),
            "copy_gb_s": round(2 * far.nbytes / best(lambda: near.copy_(far)) / 1e9, 1),
        }
