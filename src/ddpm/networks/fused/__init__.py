"""Group norm with swish in one pass over memory, on the CPU, for channels-last tensors: where torch's own operators are slow.

`norm.cpp` is compiled when it is first wanted, which takes a second or two, and kept in this package's folder for caches, unless somebody
else could write there: then each process compiles its own. Where no C++ compiler is found, or it fails, `library()` is None and everything
goes by torch's operators: the same numbers up to rounding, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
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
    compiler = compiler_of("g++")
    if compiler is None or platform.system() != "Linux":
        return None
    with suppress(OSError, subprocess.SubprocessError, RuntimeError):  # the last: no home for the cache
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
        parts = (SOURCE.read_bytes(), version, _processor(), " ".join((*compiler, *FLAGS)).encode())
        name = f"norm-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
        with suppress(OSError, RuntimeError):  # as for a cache that cannot be written, or holds what cannot be loaded
            return _load(_kept(folder() / "compiled" / name, compiler))
        with tempfile.TemporaryDirectory() as private:
            return _load(_build(Path(private) / name, compiler))
    return None


def compiler_of(usual: str) -> list[str] | None:
    """The C++ compiler: $CXX, which may be several words, such as `ccache g++`, or the usual one; None where it is not found."""
    words = shlex.split(os.environ.get("CXX") or usual)
    return words if words and shutil.which(words[0]) else None


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))  # OpenMP's functions are those that torch has loaded: one pool of threads, not two


def _kept(path: Path, compiler: list[str]) -> Path:
    """The shared library in the cache, compiled unless it is there whole; OSError where others could have put it there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(path.parent.parent, 0o002)
    _check_owner(path.parent, 0o022)
    if path.exists():
        _check_owner(path, 0o022)
        with suppress(OSError):
            _load(path)
            return path
    return _build(path, compiler)


def _check_owner(path: Path, others: int) -> None:
    """OSError unless the file or folder is the user's own, or the administrator's, and nobody else may write to it: it is code."""
    about = path.stat()
    if about.st_uid not in (os.geteuid(), 0) or about.st_mode & others:
        raise PermissionError(f"{path} could have been written by others")


def _build(path: Path, compiler: list[str]) -> Path:
    """Compile aside and rename, so that it is whole or not there."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        compiled, linked = Path(scratch) / "norm.o", Path(scratch) / "norm.so"
        for command in ([*FLAGS, "-c", SOURCE, "-o", compiled], ["-shared", compiled, "-o", linked]):
            subprocess.run([*compiler, *map(str, command)], capture_output=True, check=True, timeout=300)
        linked.chmod(0o755)
        linked.replace(path)
    return path


def _processor() -> bytes:
    """What -march=native depends on: a folder of caches may be shared by machines that differ."""
    try:
        with open("/proc/cpuinfo", "rb") as info:
            return b"".join(sorted({line for line in info if line.startswith((b"flags", b"Features", b"model name"))}))
    except OSError:
        return platform.processor().encode()


def fits(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> bool:
    """Whether the fused way is there for this call: plain tensors on the CPU, channels last and not only by their sizes, in float32 or
    bfloat16, weights in float32, and no transformation of functions, forward-mode derivative or compilation under way.
    """
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in NAMES
        and x.ndim == 4
        and x.numel() > 0
        and x.shape[1] == norm.num_channels
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and _whole(norm.weight, norm.num_channels)
        and _whole(norm.bias, norm.num_channels)
        and (shift is None or (type(shift) is Tensor and shift.device == x.device and shift.shape == x.shape[:2]))
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and library() is not None
    )


def _whole(weight: Tensor | None, channels: int) -> bool:
    """Whether these are so many float32 numbers, one after the other, on the CPU."""
    if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    return weight.shape == (channels,) and weight.is_contiguous()


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
