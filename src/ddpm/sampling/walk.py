"""`sample()` and `trajectory()`: walk a sampler's plan from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.process import At, Grid, default_grid
from ddpm.random import normals
from ddpm.sampling.clip import Clip, clipped
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.sampler import Plan, Sampler


class Frame(NamedTuple):
    """One moment of a trajectory: x at instant `at` after `step` steps, and the prediction that led there (None at the start)."""

    step: int
    at: At
    x: Tensor
    prediction: Prediction | None


def _checked_plan(denoiser: Denoiser, sampler: Sampler, steps: int, grid: Grid | None, cond: Cond) -> Plan:
    """The plan, or ConfigError where the sampler does not suit the model or calls it outside its trained range."""
    if sampler.needs_mean and denoiser.meaning != "mean":
        raise ConfigError(
            f"sampler {type(sampler).__name__}: this model predicts where a trajectory ends, not a mean; use a consistency sampler"
        )
    if steps < sampler.least:
        raise ConfigError(f"steps: got {steps}, {type(sampler).__name__} needs at least {sampler.least}; take more steps, or a lower order")
    times = (grid or default_grid(denoiser.process, steps)).times(denoiser.process, steps)
    plan = sampler.plan(denoiser.bind(cond), times)
    called = plan.called()
    low, high = denoiser.log_snr_range
    if called.min() < low or called.max() > high:
        raise ConfigError(
            f"grid: calls the network at log-SNR {called.min().item():.3f} to {called.max().item():.3f}, "
            f"it was trained on {low:.3f} to {high:.3f}; choose a grid within it"
        )
    return plan


def _check_request(denoiser: Denoiser, n: int, cond: Cond, numbers: int) -> None:
    """ConfigError for a number of samples or a condition that cannot be."""
    problems = [] if n >= 1 else [f"n: got {n}, must be at least 1"]
    if numbers != n:
        problems.append(f"indices: got {numbers}, must be n = {n}")
    for key, value in (cond or {}).items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  (callers may not be checked)
            problems.append(f"cond[{key!r}]: got {type(value).__name__}, must be a tensor of n = {n} rows")
        elif len(value) != n:
            problems.append(f"cond[{key!r}]: got {len(value)} rows, must be n = {n}")
        elif key == "class" and denoiser.classes and not bool(((value >= 0) & (value < denoiser.classes)).all()):
            problems.append(
                f"cond['class']: got ids {int(value.min())} to {int(value.max())}, this model knows 0 to {denoiser.classes - 1}"
            )
    if problems:
        raise ConfigError.of(problems)


def trajectory(
    denoiser: Denoiser,
    n: int = 1,
    *,
    steps: int = 50,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    indices: Sequence[int] | None = None,
    cond: Cond = None,
    clip: Clip = "auto",
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Iterator[Frame]:
    """Yield `steps` + 1 frames from noise to data, x (n, *D) in the space diffused in; the last frame's x are the samples.

    Sample i uses noise of (seed, first + i, step) alone, so it does not depend on the batch it is drawn in. indices: n numbers to use
    instead of first + i. sampler: DDIM() by default.
    grid: the schedule's usual one by default. cond: (n, ...) tensors. start: x at the first instant instead of noise. autocast: a lower
    precision for the network. Raises ConfigError for what the sampler, the grid and the model cannot do together.
    """
    sampler = sampler or DDIM()
    indices = range(first, first + n) if indices is None else indices
    _check_request(denoiser, n, cond, len(indices))
    plan = _checked_plan(denoiser, sampler, steps, grid, cond)
    device = _device(denoiser)
    opening = At(*(level[0] for level in plan.instants))
    x = denoiser.process.prior(normals(seed, indices, denoiser.shape, "start", dtype=dtype), opening) if start is None else start
    x = x.to(device=device, dtype=dtype)
    model = clipped(denoiser.bind(cond), denoiser.codec, clip, x)
    state = sampler.init(x)
    yield Frame(0, opening, x, None)
    for k, row in enumerate(plan.rows(x)):
        z = _noise(sampler.draws, seed, indices, denoiser.shape, k, dtype)
        z = z if z is None else z.to(device)
        with nullcontext() if denoiser.needs_grad else torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            x, state, prediction = sampler.step(model, x, row, state, z)
        yield Frame(k + 1, row.next, x, prediction)


def _noise(draws: int, seed: int, indices: Sequence[int], shape: tuple[int, ...], step: int, dtype: torch.dtype) -> Tensor | None:
    """z of one step: None, (B, *D), or (draws, B, *D); of each sample a function of (seed, index, step)."""
    if draws < 2:
        return normals(seed, indices, shape, "step", step, dtype) if draws else None
    return normals(seed, indices, (draws, *shape), "step", step, dtype).transpose(0, 1).contiguous()


def sample(
    denoiser: Denoiser,
    n: int = 64,
    *,
    steps: int = 50,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    cond: Cond = None,
    clip: Clip = "auto",
    batch: int = 256,
    decode: bool = True,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """n samples (n, *D), in the data's own units and dtype (`decode`), drawn `batch` at a time; other arguments as `trajectory`.

    progress is called with (steps done, steps in all). Raises ConfigError as `trajectory`, and where a condition does not have n rows.
    """
    _check_request(denoiser, n, cond, n)
    if batch < 1:
        raise ConfigError(f"batch: got {batch}, must be at least 1")
    training = denoiser.training
    denoiser.eval()
    walk = partial(trajectory, denoiser, steps=steps, sampler=sampler, grid=grid, seed=seed, clip=clip, dtype=dtype, autocast=autocast)
    parts: list[Tensor] = []
    total = -(-n // batch) * steps
    try:
        with torch.autocast(_device(denoiser).type, autocast, enabled=autocast is not None):  # around the loop: weights are cast once
            for begin in range(0, n, batch):
                size = min(batch, n - begin)
                some = {key: value[begin : begin + size] for key, value in cond.items()} if cond else None
                x = torch.empty(0)
                for frame in walk(size, first=first + begin, cond=some):
                    x = frame.x
                    if progress is not None and frame.step:
                        progress(len(parts) * steps + frame.step, total)
                parts.append(denoiser.codec.decode(x) if decode and denoiser.codec is not None else x)
        return torch.cat(parts)
    finally:
        denoiser.train(training)


def _device(denoiser: Denoiser) -> torch.device:
    return next((tensor.device for tensor in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
