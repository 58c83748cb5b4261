"""Every scheduler of diffusers that solves the diffusion ODE or SDE, driven by the exact denoiser.

One adapter for all: at each call it reads the noise level from the scheduler itself (a fractional one where the grid has it, never the
rounded index), asks the exact denoiser there in float64, and hands over what that scheduler expects to be told.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sampler_worlds import LINEAR, World
from torch import Tensor

try:
    import diffusers  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise SystemExit("this benchmark compares with diffusers, which is not installed: pip install 'ddpm[diffusers]'") from error

logging.getLogger("diffusers").setLevel(logging.ERROR)

Options = Mapping[str, Any]
CHAIN: Options = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SPACINGS: list[Options] = [{"timestep_spacing": name} for name in ("linspace", "trailing", "leading")]
SIGMAS: list[Options] = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
FLOW: list[Options] = [{"use_flow_sigmas": True, "flow_shift": shift} for shift in (0.5, 1.0, 2.0, 3.0)]
LU: list[Options] = [{"use_lu_lambdas": True}]
LEAST: Options = {"final_sigmas_type": "sigma_min"}
ENDS: list[Options] = [{}, {**LEAST, "lower_order_final": False}]
SCALED = ("Euler", "EulerAncestral", "Heun", "KDPM2", "KDPM2Ancestral", "LMS", "DPMSolverSDE")  # their sample is x / alpha


@dataclass(frozen=True)
class Peer:
    """One method of diffusers with the grids it offers; `kind` is the class's name without Scheduler."""

    name: str
    kind: str
    options: Options
    grids: list[Options]
    stochastic: bool = False
    call: Options = field(default_factory=dict)  # keyword arguments of its `step`


@dataclass(frozen=True)
class Level:
    """Where a scheduler stands: x = scale * sample is at alpha, sigma."""

    alpha: float
    sigma: float
    scale: float = 1.0


def make(peer: Peer, grid: Options) -> Any:
    """The scheduler."""
    base = {} if peer.kind.startswith(("EDM", "FlowMatch", "IPNDM")) else CHAIN
    return getattr(diffusers, f"{peer.kind}Scheduler")(**{**base, **peer.options, **grid})


def scheduler_for(peer: Peer, grid: Options, nfe: int) -> Any:
    """The scheduler with the most steps whose calls stay within nfe."""
    scheduler = make(peer, grid)
    for steps in range(nfe, 0, -1):
        with contextlib.suppress(ValueError, IndexError):
            scheduler.set_timesteps(steps)
            if 0 < len(scheduler.timesteps) <= nfe:
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(0)  # as its pipelines do: a grid may name the same rounded index twice
                return scheduler
    raise ValueError(f"{peer.name}: no number of steps takes at most {nfe} calls")


def level(scheduler: Any, peer: Peer, i: int) -> Level:
    """The noise level of the call now due, the i-th."""
    kind = peer.kind
    if kind == "IPNDM":  # a process of its own: sigma = sin^2
        return Level(float(scheduler.alphas[i]), float(scheduler.betas[i]))
    if kind in {"DDPM", "DDIM", "PNDM"}:
        bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])])
        return Level(math.sqrt(bar), math.sqrt(1 - bar))
    sigma = float(scheduler.sigmas[i])
    if kind.startswith("KDPM2") and not scheduler.state_in_first_order:
        sigma = float(scheduler.sigmas_interpol[i - int("Ancestral" in kind)])
    if kind == "DPMSolverSDE" and not scheduler.state_in_first_order:
        sigma = float(scheduler.mid_point_sigma)
    if kind.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas"):
        return Level(1 - sigma, sigma)
    if kind.startswith("EDM"):
        return Level(1.0, sigma)
    alpha = 1 / math.sqrt(1 + sigma**2)
    return Level(alpha, sigma * alpha, alpha if kind.removesuffix("Discrete") in SCALED else 1.0)


def told(scheduler: Any, peer: Peer, world: World, x: Tensor, at: Level) -> Tensor:
    """What the network would say at x: eps, or v for IPNDM, eps - x0 for flow matching, F for EDM."""
    x0, eps, _ = world.exact(at.alpha, at.sigma, x)
    if peer.kind == "IPNDM":
        return at.alpha * eps - at.sigma * x0
    if peer.kind.startswith("FlowMatch"):
        return eps - x0
    if peer.kind.startswith("EDM"):
        data = scheduler.config.sigma_data
        total = at.sigma**2 + data**2
        return (x0 - data**2 / total * x) * math.sqrt(total) / (at.sigma * data)
    return eps


def drive(peer: Peer, scheduler: Any, world: World, seed: int = 0) -> tuple[Tensor, int]:
    """(x at the end, calls of the denoiser) from the world's starts."""
    first = level(scheduler, peer, 0)
    sample = world.start(first.alpha, first.sigma) / first.scale
    noise: Options = {"generator": torch.Generator().manual_seed(seed)} if peer.stochastic and peer.kind != "DPMSolverSDE" else {}
    for i, time in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else None
        at = level(scheduler, peer, i)
        output = told(scheduler, peer, world, at.scale * sample.to(torch.float64), at)
        sample = scheduler.step(output, time, sample, **noise, **peer.call).prev_sample
    return sample.to(torch.float64), len(scheduler.timesteps)


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: Any, wide: Any) -> None:
        self.module, self.float32 = module, wide

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@contextlib.contextmanager
def in_float64(kind: str) -> Iterator[None]:
    """Within it, that class of schedulers computes in float64: its tables and casts are float32, whose rounding hides small differences."""
    module: Any = sys.modules[getattr(diffusers, f"{kind}Scheduler").__module__]
    kept = {name: getattr(module, name) for name in ("torch", "np") if hasattr(module, name)}
    try:
        for name, wide in (("torch", torch.float64), ("np", np.float64)):
            if name in kept:
                setattr(module, name, _Wide(kept[name], wide))
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def run(peer: Peer, grid: Options, nfe: int, world: World) -> Tensor:
    """The end points; rows of NaN where the scheduler breaks down on this grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return drive(peer, scheduler_for(peer, grid, nfe), world)[0]
        except (ValueError, IndexError, ZeroDivisionError, RuntimeError):
            return torch.full_like(world.z, math.nan)


def _crossed(*lists: list[Options]) -> list[Options]:
    return [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*lists)]


def ode_peers() -> Iterator[Peer]:
    """The deterministic ones."""
    plain = {"clip_sample": False}
    yield Peer("DDIM", "DDIM", plain, SPACINGS)
    yield Peer("PNDM", "PNDM", {}, _crossed(SPACINGS, [{"skip_prk_steps": skip, "set_alpha_to_one": True} for skip in (True, False)]))
    yield Peer("IPNDM", "IPNDM", {}, [{}])
    for name, kind in (("Euler", "EulerDiscrete"), ("LMS", "LMSDiscrete"), ("Heun", "HeunDiscrete"), ("KDPM2", "KDPM2Discrete")):
        yield Peer(name, kind, {}, SPACINGS + SIGMAS)
    long = SPACINGS + SIGMAS + FLOW
    for algorithm, order, solver in itertools.product(("dpmsolver", "dpmsolver++"), (1, 2, 3), ("midpoint", "heun")):
        options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
        if order > 1 or solver == "midpoint":
            ends = ENDS if algorithm == "dpmsolver++" else [LEAST, *ENDS[1:]]  # it refuses sigma = 0
            yield Peer(f"DPM multistep {algorithm[3:]} {order} {solver}", "DPMSolverMultistep", options, _crossed(long + LU, ends))
        if order > 1:
            ends = [
                {"lower_order_final": True},
                {"final_sigmas_type": "sigma_min"},
                {"final_sigmas_type": "sigma_min", "lower_order_final": True},
            ]
            grids = _crossed([{}, *SIGMAS, *FLOW], ends if algorithm == "dpmsolver++" else ends[1:])
            yield Peer(f"DPM singlestep {algorithm[3:]} {order} {solver}", "DPMSolverSinglestep", options, grids)
    for order in (1, 2, 3):
        yield Peer(f"DEIS {order}", "DEISMultistep", {"solver_order": order}, _crossed(long, [{}, {"lower_order_final": False}]))
    for solver, order in itertools.product(("bh1", "bh2"), (2, 3)):
        grids = _crossed(long, ENDS, [{"predict_x0": True}, {"predict_x0": False}])
        yield Peer(f"UniPC {solver} {order}", "UniPCMultistep", {"solver_type": solver, "solver_order": order}, grids)
    ends = {"sigma_min": LINEAR_SIGMAS[0], "sigma_max": LINEAR_SIGMAS[1]}
    schedules: list[Options] = [{"sigma_schedule": name} for name in ("karras", "exponential")]
    yield Peer("EDM Euler", "EDMEuler", ends, schedules)
    for order, solver in ((2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")):
        options = {**ends, "solver_order": order, "solver_type": solver}
        yield Peer(f"EDM DPM++ {order} {solver}", "EDMDPMSolverMultistep", options, _crossed(schedules, ENDS))
    shifts: list[Options] = [{"shift": shift} for shift in (0.3, 1.0, 3.0)]
    yield Peer("flow Euler", "FlowMatchEulerDiscrete", {}, _crossed(shifts, [{}, *SIGMAS]))
    yield Peer("flow Heun", "FlowMatchHeunDiscrete", {}, shifts)


LINEAR_SIGMAS = tuple(float(at.sigma / at.alpha) for at in (LINEAR.at(1e-3), LINEAR.at(1.0)))


def stochastic_peers() -> Iterator[Peer]:
    """The ones that draw noise."""
    plain = {"clip_sample": False}
    for variance in ("fixed_small", "fixed_large"):
        yield Peer(f"DDPM {variance}", "DDPM", {**plain, "variance_type": variance}, SPACINGS, True)
    for eta in (0.5, 1.0):
        yield Peer(f"DDIM eta={eta:g}", "DDIM", plain, SPACINGS, True, {"eta": eta})
    yield Peer("Euler ancestral", "EulerAncestralDiscrete", {}, SPACINGS, True)
    yield Peer("KDPM2 ancestral", "KDPM2AncestralDiscrete", {}, SPACINGS + SIGMAS, True)
    long = SPACINGS + SIGMAS + FLOW
    for algorithm, order, solver in itertools.product(("sde-dpmsolver", "sde-dpmsolver++"), (1, 2, 3), ("midpoint", "heun")):
        if (order == 3 and algorithm == "sde-dpmsolver") or (order != 2 and solver == "heun"):
            continue  # not written, or the same
        options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
        ends = ENDS if algorithm == "sde-dpmsolver++" else [LEAST, *ENDS[1:]]
        yield Peer(
            f"DPM multistep {algorithm.replace('dpmsolver', '')} {order} {solver}",
            "DPMSolverMultistep",
            options,
            _crossed(long + LU, ends),
            True,
        )
    for predictor, corrector in ((1, 1), (2, 2), (3, 3)):
        options = {"predictor_order": predictor, "corrector_order": corrector}
        yield Peer(f"SA {predictor}-{corrector}", "SASolver", options, long, True)
        yield Peer(f"SA {predictor}-{corrector} tau=1", "SASolver", {**options, "tau_func": _always}, long, True)
    ends = {"sigma_min": LINEAR_SIGMAS[0], "sigma_max": LINEAR_SIGMAS[1]}
    schedules: list[Options] = [{"sigma_schedule": name} for name in ("karras", "exponential")]
    yield Peer("EDM sde-DPM++ 2", "EDMDPMSolverMultistep", {**ends, "algorithm_type": "sde-dpmsolver++"}, _crossed(schedules, ENDS), True)
    churn = {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    yield Peer("EDM Euler churn 20", "EDMEuler", ends, schedules, True, churn)
    with contextlib.suppress(ImportError):
        yield Peer("DPM SDE", "DPMSolverSDE", {"noise_sampler_seed": 0}, SPACINGS + SIGMAS, True)


def _always(t: float) -> float:
    return 1.0
