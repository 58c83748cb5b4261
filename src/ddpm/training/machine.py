"""Where and how a run computes: device, threads, precision of the network, compiled or not."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import nn

from ddpm.cache import folder
from ddpm.denoiser.serving import laid_out
from ddpm.errors import ConfigError
from ddpm.networks import fused
from ddpm.networks.blocks import checkpointed, uncompiled

LARGE = 5_000_000  # parameters from which bfloat16 and more threads than a few pay on a CPU
FEW = 2  # threads of a smaller network: its operations are too short to be shared out further


class Machine(NamedTuple):
    """The choice, to be printed: device, precision of the network ("fp32", "bf16", "fp16") and why."""

    device: torch.device
    precision: str
    why: str

    @property
    def autocast(self) -> torch.dtype | None:
        """The lower precision the network runs in, or None."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]


def _cpu_has_bf16() -> bool:
    flags = ("avx512_bf16", "amx_bf16", "bf16")  # the last: Arm's
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            line = next((line for line in info if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in line.split() for flag in flags)


def device_of(device: str) -> str:
    """The device that "auto" or a name stands for; ConfigError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}[device]()
    if not there:
        raise ConfigError(f"device: got {device}, which torch {torch.__version__} does not find on this machine; use auto or cpu")
    return device


def choose(device: str, precision: str, threads: int | None, parameters: int) -> Machine:
    """Resolve "auto" for a network of so many parameters, and set the number of CPU threads.

    A small network on a CPU runs in float32 (the casts to bfloat16 cost what they save) and, where no number is asked for, here or by
    OMP_NUM_THREADS, on at most `FEW` threads. Raises ConfigError for a device that is not there.
    """
    device, large = device_of(device), parameters > LARGE
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing, wanted = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    cores = max(1, cores // int(sharing or "1"))  # processes of one machine share its cores
    if wanted.isdecimal() and not sharing:  # torchrun sets it to 1, whatever there is
        threads = threads or int(wanted)
    torch.set_num_threads(threads or (cores if large or device != "cpu" else min(cores, FEW)))
    if precision != "auto":
        return Machine(torch.device(device), precision, "asked for")
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine(
            torch.device(device),
            "bf16" if native else "fp16",
            "native bfloat16" if native else "no native bfloat16: fp16 with loss scaling",
        )
    if device == "cpu" and large and _cpu_has_bf16():
        return Machine(torch.device(device), "bf16", "this CPU multiplies bfloat16 natively")
    return Machine(torch.device(device), "fp32", "exact, and fast enough for this network and device")


def check_compiler(mode: str, device: torch.device) -> None:
    """ConfigError where the machine lacks what torch.compile needs on this device."""
    if mode == "none":
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "cl" if sys.platform == "win32" else "g++")
    if device.type == "cpu" and fused.compiler_of(compiler) is None:
        raise ConfigError(f"compile: got {mode}, which needs a C++ compiler, and {compiler} is not found; install it, set CXX, or use none")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(f"compile: got {mode}, which needs triton on this device; pip install triton, or use none")


@contextmanager
def executed(network: nn.Module, mode: str, device: torch.device, *, checkpointing: bool = False) -> Generator[None]:
    """Within this context torch.compile translates the network's calls when they first come, unless the mode is "none", pictures are laid
    out as is quickest, and with `checkpointing` blocks are computed twice; afterwards the network runs as it did before.

    What is translated is kept in this package's folder for caches, so that a later run starts sooner, unless TORCHINDUCTOR_CACHE_DIR names
    another, or the folder cannot be written. Raises ConfigError as `check_compiler`.
    """
    check_compiler(mode, device)
    with uncompiled(network), checkpointed(network, checkpointing), laid_out(network, _wants_channels_last(device, mode != "none")):
        try:
            if mode != "none":
                _keep_translations()
                network.compile(mode=mode)
            yield
        finally:
            vars(network).pop("_compiled_call_impl", None)


def _wants_channels_last(device: torch.device, compiled: bool) -> bool:
    """Whether pictures go channels last: products are quicker so, torch's own group norm slower, unless it is translated or replaced."""
    return (device.type == "cuda" and compiled) or (device.type == "cpu" and not compiled and fused.library() is not None)


def _keep_translations() -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    kept, usual = "TORCHINDUCTOR_CACHE_DIR", default_cache_dir()
    if os.environ.get(kept, usual) != usual:  # torch sets it itself, to a folder that a restart may empty
        return
    here = folder() / "compiled"
    with suppress(OSError):
        here.mkdir(parents=True, exist_ok=True)
        if os.access(here, os.W_OK):
            os.environ[kept] = str(here)
