"""`sample()` and `trajectory()`: walk a sampler's plan from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import UNASKED, Base, Cond, Denoiser, Model, Prediction, enlarged, told
from ddpm.denoiser.serving import serving
from ddpm.errors import ConfigError
from ddpm.process import At, Grid
from ddpm.random import normals
from ddpm.sampling.adaptive import Adaptive
from ddpm.sampling.clip import QUANTILE, Clip, clipped
from ddpm.sampling.presets import name_of
from ddpm.sampling.sampler import Plan, Sampler
from ddpm.sampling.usual import named, usual_steps, way

KEYS = ("class", "vector", "image", "tokens")  # what a sample may be asked for under
BLOCK = 2**56  # numbers between a sample's own noise and that of the smaller sample it enlarges


class Frame(NamedTuple):
    """One moment of a trajectory: x at instant `at` after `step` steps, and the prediction that led there (None at the start)."""

    step: int
    at: At
    x: Tensor
    prediction: Prediction | None


def _checked_plan(denoiser: Denoiser, sampler: Sampler, steps: int, grid: Grid, cond: Cond) -> Plan:
    """The plan, or ConfigError where it has too few steps or calls the model outside its trained range."""
    if steps < sampler.least:
        raise ConfigError(f"steps: got {steps}, {name_of(sampler)} needs at least {sampler.least}; take more steps, or a lower order")
    times = grid.times(denoiser.process, steps)
    plan = sampler.plan(denoiser.bind(cond), times)
    check_range(denoiser, plan.called())
    return plan


def check_range(denoiser: Denoiser, called: Tensor) -> None:
    """ConfigError where a log-SNR lies outside the range the denoiser was trained on."""
    low, high = denoiser.log_snr_range
    if called.min() < low or called.max() > high:
        raise ConfigError(
            f"grid: calls the network at log-SNR {called.min().item():.3f} to {called.max().item():.3f}, "
            f"it was trained on {low:.3f} to {high:.3f}; choose a grid within it"
        )


def check_request(denoiser: Denoiser, n: int, cond: Cond, numbers: int, start: Tensor | None = None) -> None:
    """ConfigError for a number of samples, a condition or a starting point that cannot be."""
    problems = [] if n >= 1 else [f"n: got {n}, must be at least 1"]
    if numbers != n:
        problems.append(f"indices: got {numbers}, must be n = {n}")
    if start is not None and tuple(start.shape) != (n, *denoiser.shape):
        problems.append(f"start: got shape {tuple(start.shape)}, must be n = {n} samples of {denoiser.shape}")
    for key, value in (cond or {}).items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  (callers may not be checked)
            problems.append(f"cond[{key!r}]: got {type(value).__name__}, must be a tensor of n = {n} rows")
        elif len(value) != n:
            problems.append(f"cond[{key!r}]: got {len(value)} rows, must be n = {n}")
        elif key == "mask" and tuple(value.shape[1:]) not in {tuple(denoiser.shape), (1, *denoiser.shape[1:])}:
            wide = (n, denoiser.shape[0], *denoiser.shape[1:])
            problems.append(f"cond['mask']: got {tuple(value.shape)}, must be {wide}, or 1 in the place of the channels")
        elif key == "mask" and not bool(((value == 0) | (value == 1)).all()):
            problems.append("cond['mask']: must be 1 where an entry is there and 0 elsewhere; got other values")
        elif key == "class" and denoiser.classes and not bool(((value >= 0) & (value < denoiser.classes)).all()):
            problems.append(
                f"cond['class']: got ids {int(value.min())} to {int(value.max())}, this model knows 0 to {denoiser.classes - 1}"
            )
    if denoiser.conditions is not None:
        known = {*(denoiser.conditions or KEYS), "mask"}  # of a network that was put together by hand they may not be known
        told_of = " and ".join(sorted(known))
        problems += [f"cond[{key!r}]: this model is told {told_of}" for key in cond or {} if key not in {*known, *UNASKED, "null"}]
    if problems:
        raise ConfigError.of(problems)


def trajectory(
    denoiser: Denoiser,
    n: int = 1,
    *,
    steps: int | None = None,
    sampler: Sampler | Adaptive | str | None = None,
    grid: Grid | str | None = None,
    seed: int = 0,
    first: int = 0,
    indices: Sequence[int] | None = None,
    cond: Cond = None,
    clip: Clip = "auto",
    clip_quantile: float = QUANTILE,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
) -> Iterator[Frame]:
    """Yield `steps` + 1 frames from noise to data, x (n, *D) in the space diffused in; the last frame's x are the samples.

    Sample i uses noise of (seed, first + i, step) alone, so it does not depend on the batch it is drawn in. indices: n numbers to use
    instead of first + i. sampler, steps, grid: DDIM(), 50 (or a shorter chain's all) and the schedule's usual grid by default, of a
    distilled model what it was made for; a name will do, "dpm++2m", "karras". cond: (n, ...) tensors. start: x (n, *D) at the grid's
    first instant instead of noise; with the grid `Below` that is not t = 1. autocast: a lower precision for the network. compiled:
    torch.compile translates the whole step, sampler and network, when it first comes (`Adaptive`: only
    what `network.compile()` was called on). A self-conditioned model is shown, in all calls of a step, the x0 that the step before
    predicted, after clipping and guidance, and zeros in the first step; where there are no steps (`Adaptive`, inversion, likelihood) always
    zeros, under which it is a denoiser in its own right. Raises ConfigError for what sampler, grid and model cannot do together.
    """
    sampler, steps, grid = way(denoiser, sampler, steps, grid)
    if isinstance(sampler, Adaptive):
        raise ConfigError("sampler Adaptive: each sample takes its own steps, so there are no frames; use ddpm.sample() or another sampler")
    indices = range(first, first + n) if indices is None else indices
    check_request(denoiser, n, cond, len(indices), start)
    if denoiser.base is not None and not (cond and "low" in cond):
        walk = partial(trajectory, n=n, seed=seed, clip=clip, clip_quantile=clip_quantile, dtype=dtype, autocast=autocast)
        cond = {**(cond or {}), **_lower(denoiser, denoiser.base, walk, sampler, steps, seed, indices, cond)}
    plan = _checked_plan(denoiser, sampler, steps, grid, cond)
    device = device_of(denoiser)
    opening = At(*(level[0] for level in plan.instants))
    x = denoiser.process.prior(normals(seed, indices, denoiser.shape, "start", dtype=dtype), opening) if start is None else start
    x = x.to(device=device, dtype=dtype)
    parts = [denoiser.within(levels) for levels in plan.levels()]  # decided once, on the host: a step has no branch

    def bound(given: Cond) -> dict[Denoiser, Model]:
        return {part: clipped(part.bind(given), denoiser.codec, clip, x, clip_quantile) for part in set(parts)}

    models = bound({**(cond or {}), "x0": torch.zeros_like(x)} if denoiser.self_condition else cond)  # one form: it compiles once
    state = sampler.init(x)
    step = torch.compile(sampler.step) if compiled else sampler.step  # pyright: ignore[reportUnknownMemberType]
    yield Frame(0, opening, x, None)
    for k, row in enumerate(plan.rows(x)):
        z = _noise(sampler.draws, seed, indices, denoiser.shape, k, dtype)
        z = z if z is None else z.to(device)
        with nullcontext() if denoiser.needs_grad else torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            x, state, prediction = step(models[parts[k]], x, row, state, z)
        if denoiser.self_condition:
            models = bound({**(cond or {}), "x0": prediction.x0.detach()})
        yield Frame(k + 1, row.next, x, prediction)


def _lower(
    denoiser: Denoiser,
    base: Base,
    walk: Callable[..., Iterator[Frame]],
    sampler: Sampler,
    steps: int,
    seed: int,
    indices: Sequence[int],
    cond: Cond,
) -> dict[str, Tensor]:
    """What a cascade's last model is told: a smaller sample under the same condition, drawn by as many steps of the same sampler (of a
    distilled model by what it was made for), enlarged, with the noise that is laid on it.
    """
    small, codec, device = base.denoiser, denoiser.codec, device_of(denoiser)
    known = {key: value for key, value in (cond or {}).items() if key not in UNASKED} or None
    alike = small.meaning == denoiser.meaning == "mean"
    own: dict[str, Any] = {"sampler": sampler, "steps": usual_steps(small, steps)} if alike else {}
    *_, last = walk(small, indices=[index + BLOCK for index in indices], cond=known, **own)
    drawn = last.x if small.codec is None else small.codec.decode(last.x)
    low = enlarged(drawn, denoiser.data_shape)
    low = low.to(last.x) if codec is None else codec.encode(low).to(last.x)
    deviation = torch.full((len(low),), base.drawn, dtype=torch.float32, device=device)
    return told(low.to(device), deviation, normals(seed, indices, tuple(low.shape[1:]), "low").to(device))


def _noise(draws: int, seed: int, indices: Sequence[int], shape: tuple[int, ...], step: int, dtype: torch.dtype) -> Tensor | None:
    """z of one step: None, (B, *D), or (draws, B, *D); of each sample a function of (seed, index, step)."""
    if draws < 2:
        return normals(seed, indices, shape, "step", step, dtype) if draws else None
    return normals(seed, indices, (draws, *shape), "step", step, dtype).transpose(0, 1).contiguous()


def sample(
    denoiser: Denoiser,
    n: int = 64,
    *,
    steps: int | None = None,
    sampler: Sampler | Adaptive | str | None = None,
    grid: Grid | str | None = None,
    seed: int = 0,
    first: int = 0,
    cond: Cond = None,
    clip: Clip = "auto",
    clip_quantile: float = QUANTILE,
    batch: int = 256,
    decode: bool = True,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """n samples (n, *D), in the data's own units and dtype (`decode`), drawn `batch` at a time; other arguments as `trajectory`.

    A cascade draws the smaller samples first (`_lower`). sampler may be `Adaptive`, which chooses its own instants from t = 1: steps is not
    read then, and progress not called. progress is called with (steps done, steps in all), of a cascade's last stage. Raises ConfigError
    as `trajectory`, and where a condition does not have n rows.
    """
    check_request(denoiser, n, cond, n, start)
    if batch < 1:
        raise ConfigError(f"batch: got {batch}, must be at least 1")
    sampler, grid = named(sampler, grid)
    if isinstance(sampler, Adaptive) and grid is not None:
        raise ConfigError("grid: sampler Adaptive chooses its own instants; leave the grid out, or name another sampler")
    if isinstance(sampler, Adaptive) and denoiser.base is not None:
        raise ConfigError("sampler Adaptive: this model enlarges smaller samples, which are drawn in steps; use another sampler")
    walk = partial(
        trajectory, denoiser, steps=steps, sampler=sampler, grid=grid, seed=seed, clip=clip, dtype=dtype, autocast=autocast,
        compiled=compiled,
    )  # fmt: skip
    parts: list[Tensor] = []
    if not isinstance(sampler, Adaptive):
        sampler, steps, grid = way(denoiser, sampler, steps, grid)
    rows = sampler.rows(steps) if isinstance(sampler, Sampler) and steps else 1
    total = -(-n // batch) * rows
    with serving(denoiser, device_of(denoiser), autocast):
        for begin in range(0, n, batch):
            size = min(batch, n - begin)
            some = {key: value[begin : begin + size] for key, value in cond.items()} if cond else None
            opening = None if start is None else start[begin : begin + size]
            if isinstance(sampler, Adaptive):
                numbers = range(first + begin, first + begin + size)
                x = _solved(denoiser, sampler, seed, numbers, some, clip, clip_quantile, opening, dtype)
                parts.append(denoiser.codec.decode(x) if decode and denoiser.codec is not None else x)
                continue
            x = torch.empty(0)
            for frame in walk(size, first=first + begin, cond=some, start=opening, clip_quantile=clip_quantile):
                x = frame.x
                if progress is not None and frame.step:
                    progress(len(parts) * rows + frame.step, total)
            parts.append(denoiser.codec.decode(x) if decode and denoiser.codec is not None else x)
    return torch.cat(parts)


def _solved(
    denoiser: Denoiser,
    sampler: Adaptive,
    seed: int,
    indices: Sequence[int],
    cond: Cond,
    clip: Clip,
    clip_quantile: float,
    start: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """One batch by `Adaptive`, from the noise that `trajectory` would start with."""
    noisiest = denoiser.process.at(1.0)
    x = denoiser.process.prior(normals(seed, indices, denoiser.shape, "start", dtype=dtype), noisiest) if start is None else start
    x = x.to(device=device_of(denoiser), dtype=dtype)
    return sampler.solve(clipped(denoiser.bind(cond), denoiser.codec, clip, x, clip_quantile), x, noisiest, denoiser.process.clean)[0]


def device_of(denoiser: Denoiser) -> torch.device:
    """Where its parameters are."""
    return next((tensor.device for tensor in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
