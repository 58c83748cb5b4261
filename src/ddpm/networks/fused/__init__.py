"""Group norm with swish in one pass over memory, on the CPU, for channels-last tensors: where torch's own operators are slow.

`norm.cpp` is compiled when it is first wanted, which takes a second or two, and kept in this package's folder for caches. Where no C++
compiler is found, or it fails, `library()` is None and everything goes by torch's operators: the same numbers up to rounding, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ddpm.cache import folder

SOURCE = Path(__file__).with_name("norm.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-w")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, made if they are not there; None where that is not possible."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or platform.system() != "Linux":
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))  # OpenMP's functions are those that torch has loaded: one pool of threads, not two
    except (OSError, subprocess.SubprocessError, RuntimeError):  # the last: no home for the cache
        return None


def _built(compiler: str) -> Path:
    """The shared library for this source, compiler and processor; compiled aside and renamed, so that it is whole or not there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = (SOURCE.read_bytes(), version, _processor(), " ".join(FLAGS).encode())
    path = folder() / "compiled" / f"norm-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            compiled, linked = Path(scratch) / "norm.o", Path(scratch) / "norm.so"
            for command in ([*FLAGS, "-c", SOURCE, "-o", compiled], ["-shared", compiled, "-o", linked]):
                subprocess.run([compiler, *map(str, command)], capture_output=True, check=True, timeout=300)
            linked.replace(path)
    return path


def _processor() -> bytes:
    """What -march=native depends on: a folder of caches may be shared by machines that differ."""
    try:
        with open("/proc/cpuinfo", "rb") as info:
            return b"".join(sorted({line for line in info if line.startswith((b"flags", b"Features", b"model name"))}))
    except OSError:
        return platform.processor().encode()


def fits(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Whether the fused way is there for this call: plain tensors on the CPU, channels last, in float32 or bfloat16, weights in float32,
    and no transformation of functions, forward-mode derivative or compilation under way.
    """
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in NAMES
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and type(norm.weight) is nn.Parameter
        and norm.weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and library() is not None
    )


def norm_swish(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, swish: bool) -> Tensor:
    """swish(norm(x + shift)), without the swish where not wanted; x (B, C, H, W) as `fits` asks, shift (B, C). Differentiable once."""
    return _NormSwish.apply(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, swish)  # pyright: ignore[reportReturnType]


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, swish: bool) -> Tensor:
        batch, channels, height, width = x.shape
        ctx.sizes, ctx.swish, ctx.shifted = (batch, height * width, channels, groups), swish, None if shift is None else shift.dtype
        e = None if shift is None else shift.detach().float().contiguous()
        y, mean, moment = torch.empty_like(x), weight.new_empty(batch, channels), weight.new_empty(batch, groups, 2)
        _call("forward", x, (x, e, weight, bias, y, mean, moment), ctx.sizes, ctypes.c_float(eps), ctypes.c_int(swish))
        ctx.save_for_backward(x, e, weight, bias, mean, moment)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, e, weight, bias, mean, moment = ctx.saved_tensors
        dy = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx, (dw, db, de) = torch.empty_like(x), weight.new_empty(3, *mean.shape)
        _call("backward", x, (x, e, weight, bias, mean, moment, dy, dx, dw, db, de), ctx.sizes, ctypes.c_int(ctx.swish))
        return dx, None if ctx.shifted is None else de.to(ctx.shifted), dw.sum(0), db.sum(0), None, None, None


def _call(name: str, x: Tensor, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], *rest: Any) -> None:
    function = getattr(library(), f"{name}_{NAMES[x.dtype]}")
    places = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
    function(*places, *map(ctypes.c_long, sizes), *rest)
