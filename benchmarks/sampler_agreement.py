"""Where both sides claim the same formula: the largest difference on one grid from one start, and whom the exact answer favours.

Our sampler walks the straight schedule in y = x/(alpha + sigma), along the levels that the scheduler really used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sampler_ours import preset
from sampler_peers import Options, Peer, drive, in_float64, make
from sampler_worlds import LINEAR, STRAIGHT, World, walk
from torch import Tensor

from ddpm.sampling import DDIM, Ancestral, Multistep, Sampler

SAME = 1e-5
KARRAS: Options = {"use_karras_sigmas": True}
EXPONENTIAL: Options = {"use_exponential_sigmas": True}
TRAILING: Options = {"timestep_spacing": "trailing"}
TO_LEAST: Options = {"final_sigmas_type": "sigma_min", "lower_order_final": False}  # its last step ends at the chain's first knot


@dataclass(frozen=True)
class Pair:
    """A scheduler at some options and steps, and our sampler; `stride`: of the scheduler's levels ours stops at every stride-th."""

    kind: str
    options: Options
    steps: int
    ours: Sampler
    name: str
    why: str = ""  # where they differ
    stride: int = 1
    call: Options | None = None


def _multi(algorithm: str, order: int, solver: str, grid: Options, steps: int, ours: Sampler, name: str, why: str = "") -> Pair:
    options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver, **grid}
    return Pair("DPMSolverMultistep", options, steps, ours, name, why)


def _unipc(solver: Literal["bh1", "bh2"], order: int, x0: bool, grid: Options, steps: int, name: str, why: str = "") -> Pair:
    ours = Multistep(prediction="x0" if x0 else "eps", order=order, corrector=True, rule=solver)
    return Pair("UniPCMultistep", {"solver_type": solver, "solver_order": order, "predict_x0": x0, **grid}, steps, ours, name, why)


def _sa(order: int, rule: Literal["bh1", "bh2"], why: str = "") -> Pair:
    options = {"predictor_order": order, "corrector_order": order + 1, "tau_func": float, "lower_order_final": False}
    ours = Multistep(order=order, corrector=True, rule=rule, noise=1.0)
    return Pair("SASolver", options, 40, ours, f"sa-solver, order {order}, rule {rule}", why)


def _twice(grid: Options, steps: int, why: str = "") -> Pair:
    options = {"solver_order": 2, "lower_order_final": True, **grid}
    return Pair("DPMSolverSinglestep", options, steps, preset("dpm++2s"), "dpm++2s", why, stride=2)


PLAIN: Options = {"clip_sample": False}
EVEN: Options = {**PLAIN, **TRAILING}
PLMS: Options = {"skip_prk_steps": True, "set_alpha_to_one": True, **TRAILING}
LARGE: Options = {**EVEN, "variance_type": "fixed_large"}
EPS = Multistep(prediction="eps")
EPS_EXACT = replace(EPS, rule="exact")
THIRD = preset("dpm++3m")
SMALL = Ancestral(variance="small")
PREVIOUS = "it steps to t - 1000 // steps, not to the grid's next instant"
HALF = "half the second difference (the slopes below)"
LIMIT = "its weight of the second difference tends to -1 as h -> 0, the integral to 0"
INFINITE = "its B(h) = h is infinite at sigma = 0: NaN"
SQUARE = "it weighs a single difference by h^2 (1 + tau^2)/2, which is large where steps are long"
ONE_CALL = "ours makes no second call in a step from alpha = 0"
PAIRS = [
    Pair("DDIM", EVEN, 10, DDIM(), "DDIM"),
    Pair("DDIM", EVEN, 7, DDIM(), "DDIM", PREVIOUS),
    Pair("DDIM", EVEN, 600, DDIM(), "DDIM", PREVIOUS),
    Pair("EulerDiscrete", KARRAS, 10, DDIM(), "DDIM"),
    Pair("EDMEuler", {}, 10, DDIM(), "DDIM"),
    Pair("FlowMatchEulerDiscrete", {"shift": 3.0}, 10, DDIM(), "DDIM"),
    _multi("dpmsolver++", 1, "midpoint", KARRAS, 10, DDIM(), "DDIM"),
    _multi("dpmsolver++", 2, "midpoint", KARRAS, 10, preset("dpm++2m"), "dpm++2m"),
    _multi("dpmsolver++", 2, "heun", KARRAS, 10, Multistep(rule="exact"), "dpm++2m, rule exact"),
    _multi("dpmsolver", 2, "midpoint", TO_LEAST, 10, EPS, "dpm++2m of eps"),
    _multi("dpmsolver", 2, "heun", TO_LEAST, 10, EPS_EXACT, "dpm++2m of eps, rule exact"),
    _multi("dpmsolver++", 3, "midpoint", KARRAS, 20, THIRD, "dpm++3m", HALF),
    _multi("dpmsolver", 3, "midpoint", TO_LEAST, 20, replace(EPS, order=3), "dpm++3m of eps", HALF),
    _twice(EXPONENTIAL, 19),
    _twice(EXPONENTIAL, 20, "at an even number of steps it takes one of first order before the last"),
    _twice(KARRAS, 19, "its inner call is at the grid's own middle level, ours half way in log-SNR"),
    Pair("HeunDiscrete", KARRAS, 10, preset("edm"), "edm"),
    Pair("KDPM2Discrete", KARRAS, 10, preset("dpm-solver-2"), "dpm-solver-2"),
    Pair("FlowMatchHeunDiscrete", {}, 10, preset("heun"), "heun", ONE_CALL),
    Pair("LMSDiscrete", KARRAS, 10, preset("lms"), "lms"),
    Pair("IPNDM", {}, 10, preset("ipndm"), "ipndm", "from alpha = 0 it divides by 1e-8 and so drops x0"),
    Pair("PNDM", PLMS, 10, preset("plms"), "plms", "its first step is walked twice, with the mean of eps at both ends"),
    Pair("DEISMultistep", {"solver_order": 2}, 20, EPS_EXACT, "deis in log-SNR, order 2"),
    Pair("DEISMultistep", {"solver_order": 3}, 20, replace(EPS_EXACT, order=3), "deis in log-SNR"),
    _unipc("bh2", 2, True, KARRAS, 10, "unipc, order 2"),
    _unipc("bh1", 2, True, TO_LEAST, 10, "unipc-bh1, order 2"),
    _unipc("bh1", 2, True, KARRAS, 10, "unipc-bh1, order 2", INFINITE),
    _unipc("bh2", 2, False, TO_LEAST, 10, "unipc of eps, order 2"),
    _unipc("bh2", 3, True, TO_LEAST, 10, "unipc"),
    _unipc("bh2", 3, True, KARRAS, 10, "unipc", "it lowers the order of the last step but one"),
    Pair("DDPM", EVEN, 10, SMALL, "Ancestral small"),
    Pair("DDPM", LARGE, 10, Ancestral(variance="large"), "Ancestral large", "it adds noise in the last step too"),
    Pair("DDPM", EVEN, 600, SMALL, "Ancestral small"),
    Pair("DDIM", EVEN, 10, DDIM(eta=0.5), "DDIM eta=0.5", call={"eta": 0.5}),
    Pair("EulerAncestralDiscrete", TRAILING, 10, DDIM(eta=1.0), "DDIM eta=1"),
    _multi("sde-dpmsolver++", 1, "midpoint", KARRAS, 20, DDIM(eta=1.0), "DDIM eta=1"),
    _multi("sde-dpmsolver++", 2, "midpoint", KARRAS, 20, preset("sde-dpm++2m"), "sde-dpm++2m"),
    _multi("sde-dpmsolver++", 2, "heun", KARRAS, 20, Multistep(noise=1.0, rule="exact"), "sde-dpm++2m, rule exact"),
    _multi("sde-dpmsolver++", 3, "midpoint", KARRAS, 20, preset("sde-dpm++3m"), "sde-dpm++3m", LIMIT),
    _sa(1, "bh1"),
    _sa(2, "bh1"),
    _sa(3, "bh1"),
    _sa(2, "bh2", SQUARE),
]


def levels(scheduler: Any, kind: str) -> list[float]:
    """u of every instant the scheduler stops at, the last included."""
    if kind in {"DDPM", "DDIM", "PNDM"}:
        bars = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
        ratios = [((1 - bar) / bar) ** 0.5 for bar in bars] + [0.0]
    elif kind == "IPNDM":
        return [float(b / (a + b)) for a, b in zip(scheduler.alphas.double(), scheduler.betas.double())]
    elif kind.startswith("FlowMatch"):
        return list(dict.fromkeys(scheduler.sigmas.tolist()))
    else:
        ratios = scheduler.sigmas.double().tolist()
    return [ratio / (1 + ratio) for ratio in dict.fromkeys(ratios)]


@dataclass(frozen=True)
class Outcome:
    """End points of both sides, as y, and the exact ones where there are any."""

    theirs: Tensor
    ours: Tensor
    exact: Tensor | None


def compare(pair: Pair, world: World) -> Outcome:
    """Both sides on the scheduler's levels."""
    peer = Peer(pair.name, pair.kind, pair.options, [], pair.ours.stochastic, pair.call or {})
    if "tau_func" in pair.options:
        peer = replace(peer, options={**pair.options, "tau_func": lambda t: 1.0})
    with in_float64(pair.kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(peer, {})
        scheduler.set_timesteps(pair.steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        stops = levels(scheduler, pair.kind)
        theirs, _ = drive(peer, scheduler, world)
    last = stops[-1]
    if "EDM" not in pair.kind and not pair.kind.startswith("FlowMatch") and last > 0:
        theirs = theirs / ((1 + (last / (1 - last))) / (1 + (last / (1 - last)) ** 2) ** 0.5)
    walked = stops[:: pair.stride] if last == 0 else stops
    times = torch.tensor(walked[:-1] if walked[-1] == 0 else walked, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(world.z.shape, generator=generator, dtype=torch.float64) for _ in times]
    denoiser, start = world.straight, None
    if pair.kind == "DDPM":  # its larger variance is the transition's, which is not the same on every schedule
        denoiser, times = world.denoiser, LINEAR.time_of(2 * ((1 - times) / times).log())
    else:
        start = _as_y(world, float(times[0]))
    rows = None if last == 0 else len(times) - 1
    ours = walk(world, pair.ours, times, start=start, denoiser=denoiser, noises=noises, rows=rows)
    return Outcome(theirs, ours, None if pair.ours.stochastic else world.states[last])


def _as_y(world: World, u: float) -> Tensor:
    alpha = (1 - u) / ((1 - u) ** 2 + u**2) ** 0.5
    sigma = u / ((1 - u) ** 2 + u**2) ** 0.5
    return world.start(alpha, sigma) / (alpha + sigma)


def agreements(world: World) -> None:
    """The table."""
    print("\nThe same formula on the same levels and starts, both in float64: largest difference (entries are of order 1)")
    print("error: RMS to the exact state where the grid ends; of stochastic methods sliced W2 to the data, with the same noise\n")
    print("| diffusers | steps | ours | largest difference | diffusers' error | our error | the exact answer favours | why they differ |")
    print("|---|---:|---|---:|---:|---:|---|---|")
    for pair in PAIRS:
        outcome = compare(pair, world)
        gap = float((outcome.theirs - outcome.ours).abs().max())
        words = " ".join(
            f"{key}={value}" for key, value in pair.options.items() if key not in {"clip_sample", "tau_func", "algorithm_type"}
        )
        errors = [_error(world, outcome, x) for x in (outcome.theirs, outcome.ours)]
        verdict = "neither: the same | " if gap <= SAME else ("ours" if not errors[0] <= errors[1] else "diffusers") + f" | {pair.why}"
        label = f"{pair.kind} {pair.options.get('algorithm_type', '')} {words}"
        print(f"| {label} | {pair.steps} | {pair.name} | {gap:.1e} | {errors[0]:.5f} | {errors[1]:.5f} | {verdict} |")


def _error(world: World, outcome: Outcome, x: Tensor) -> float:
    if outcome.exact is None:
        return world.sliced(x)
    return float((x - outcome.exact).square().mean().sqrt())


def slopes() -> None:
    """Order of third-order DPM-Solver++ on log-SNR -5 to 5 from exact starting values: 3 is what the name promises."""
    world = World(range(5, 6), 256)
    print("\nDPM-Solver++ of third order, even steps in log-SNR from -5 to 5, exact starting values: RMS error, and slope\n")
    print("| steps | diffusers | slope | ours | slope |")
    print("|---:|---:|---:|---:|---:|")
    before: tuple[float, float] | None = None
    for steps in (32, 64, 128, 256):
        both = _interior(world, steps)
        cells = ["" if before is None else f"{torch.tensor(a / b).log2():.2f}" for a, b in zip(before or both, both)]
        print(f"| {steps} | {both[0]:.2e} | {cells[0]} | {both[1]:.2e} | {cells[1]} |")
        before = both


def _interior(world: World, steps: int) -> tuple[float, float]:
    log_snr = torch.linspace(-5.0, 5.0, steps + 1, dtype=torch.float64)
    ratio = (-log_snr / 2).exp()
    u = ratio / (1 + ratio)
    y = [world.z / (1 + ratio[0]) * (1 + ratio[0] ** 2).sqrt()]
    for a, b in zip((u[0], u[1], u[0]), (u[1], u[2], u[-1])):
        y.append(world.flow(y[-1] if a > u[0] or a == u[1] else y[0], float(a), float(b)))
    known = [world.straight(state, STRAIGHT.at(level)).x0 for state, level in zip(y, u[:2])]

    plan, model = THIRD.plan(world.straight.bind(), u), world.straight.bind()
    x, memory = y[2], (known[1], known[0])
    for row in plan.rows(x)[2:-1]:
        x, memory, _ = THIRD.step(model, x, row, memory, None)

    scheduler = make(Peer("", "DPMSolverMultistep", {"solver_order": 3}, []), {})
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = ratio, torch.arange(steps + 5)  # longer than it is: no step counts as the last
    scheduler._step_index, scheduler.lower_order_nums, scheduler.model_outputs = 2, 3, [None, known[0], known[1]]
    sample = y[2] * (1 + ratio[2]) / (1 + ratio[2] ** 2).sqrt()
    for k in range(2, steps):
        alpha = 1 / (1 + ratio[k] ** 2).sqrt()
        eps = world.exact(float(alpha), float(ratio[k] * alpha), sample).eps
        sample = scheduler.step(eps, scheduler.timesteps[k], sample).prev_sample
    theirs = sample * (1 + ratio[-1] ** 2).sqrt() / (1 + ratio[-1])
    return tuple(float((end - y[3]).square().mean().sqrt()) for end in (theirs, x))  # pyright: ignore[reportReturnType]
