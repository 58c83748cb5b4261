"""What `training.py` and `sampling.py` share: the networks compared, their bare products, and the interleaved clock.

Three networks of 35,746,307 parameters with the same weights (the CIFAR-10 one of Ho et al. 2020): this package's, and diffusers'
UNet2DModel twice: as its unconditional training script sets it up (float32, attention heads 8 channels wide), and at its best
(bfloat16 autocast, one head). diffusers is needed by the benchmarks only: pip install 'ddpm[diffusers]'
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
from ddpm.interop.diffusers_unet import from_diffusers_state
from ddpm.networks import UNetConfig
from ddpm.process import Linear, Process

SHAPE = (3, 32, 32)
PRODUCTS = (torch.conv2d, torch.conv_transpose2d, F.linear, torch.bmm, F.scaled_dot_product_attention)
Action = Callable[[], object]


class Peers(NamedTuple):
    """The three contestants, at the same weights."""

    ours: NetworkDenoiser
    script: nn.Module
    best: nn.Module


def diffusers() -> Any:
    """The diffusers package, or an exit that says how to get it."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise SystemExit(f"this benchmark compares with diffusers: pip install 'ddpm[diffusers]' ({error})") from error


def options(about: str) -> argparse.Namespace:
    """The flags of both benchmarks; sets the number of threads."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16, the script's)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, each running every contestant once (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of ours and of diffusers' best (default bf16)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of all three (default 0, the script's)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def contestants(dropout: float) -> Peers:
    """The three networks; ours inside a denoiser of Ho's process, as a run has it."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "dropout": dropout,
    }
    model = diffusers().UNet2DModel
    script, best = model(**common, attention_head_dim=8), model(**common, attention_head_dim=None)
    script.load_state_dict(best.state_dict())
    config = UNetConfig(dropout=dropout)
    network = config.build(SHAPE)
    network.load_state_dict(from_diffusers_state(best.state_dict(), config))
    codec = Codec(shift=(127.5,) * 3, scale=(127.5,) * 3, dtype="uint8", bins=(0.0, 255.0))
    return Peers(NetworkDenoiser(network, Process(Linear()), Eps(), Index(), codec, SHAPE), script, best)


def lowered(precision: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


class Recorder(TorchFunctionMode):
    """Notes every convolution and matrix product called within, with shapes, arguments and which operands want gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], list[Any], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, [_shell(value) for value in args], {key: _shell(value) for key, value in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))


class Shell(NamedTuple):
    """A tensor's shape, and whether it wants a gradient."""

    shape: torch.Size
    grad: bool

    def fill(self, dtype: torch.dtype, grad: bool) -> Tensor:
        """A random tensor like it."""
        return (torch.randn(self.shape) / 8).to(dtype).requires_grad_(grad and self.grad)


def _shell(value: Any) -> Any:
    return Shell(value.shape, value.requires_grad) if isinstance(value, Tensor) else value


def bare_products(network: nn.Module, batch: int, precision: str, backward: bool) -> Action:
    """The network's own convolutions and matrix products, alone: same shapes, operands already in the precision they run in."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with Recorder() as recorder, torch.set_grad_enabled(backward):
        network(torch.randn(batch, *SHAPE), torch.rand(batch))

    def filled(value: Any) -> Any:
        return value.fill(dtype, backward) if isinstance(value, Shell) else value

    calls = [(f, [filled(v) for v in args], {key: filled(v) for key, v in kwargs.items()}) for f, args, kwargs in recorder.calls]
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


def interleaved(actions: Mapping[str, Action], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round, A B C A B C ...; one round of warm-up is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(seconds: Mapping[str, list[float]], batch: int, ratios: Mapping[str, tuple[str, str]]) -> None:
    """Print the medians and, as the last line, JSON: for each name, the median over rounds of the ratio of its two actions."""
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:24s} median {middle:7.3f} s   fastest {min(values):7.3f} s   {batch / middle:7.2f} images/s")
    result = {
        name: round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)
        for name, (over, under) in ratios.items()
    }
    print(json.dumps(result))
