"""Instances of every member of every family, in one place: the laws run over these lists.

A class that a package lists and that has no instance here fails the import, and so every law: nothing is offered that is not tested.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

from ddpm.denoiser import PARAMETERIZATIONS, X0, EDMPreconditioning, Eps, Flow, Parameterization, PosteriorMean, Score, V, legal
from ddpm.objective import (
    LOSSES,
    P2,
    TIMES,
    WEIGHTINGS,
    Bound,
    Denoising,
    EDMWeighting,
    Hybrid,
    LearnedSchedule,
    LogitNormal,
    LogNormalSigma,
    LossSettings,
    MinSNR,
    Sigmoid,
    Simple,
    Stepwise,
    Stratified,
    Target,
    Times,
    UniformTimes,
    VariationalBound,
    Weighting,
)
from ddpm.process import (
    EDM,
    GRIDS,
    SCHEDULES,
    VE,
    VPSDE,
    Below,
    Cosine,
    Full,
    Grid,
    Karras,
    Leading,
    Level,
    Linear,
    Listed,
    LogSNR,
    LogSNRTable,
    Quadratic,
    Schedule,
    Shifted,
    Straight,
    SubVP,
    Table,
    Trailing,
    Uniform,
    ZeroTerminalSNR,
)
from ddpm.process import Sigmoid as SigmoidSchedule
from ddpm.sampling import (
    DDIM,
    PRESETS,
    SAMPLERS,
    Ancestral,
    EulerMaruyama,
    Langevin,
    Multistep,
    Restart,
    Sampler,
    SingleStep,
)

M = TypeVar("M")


def complete(family: tuple[type, ...], members: list[M]) -> list[M]:
    """The members, once every class of the family is among them."""
    missing = [kind.__name__ for kind in family if not any(type(member) is kind for member in members)]
    if missing:
        raise AssertionError(f"tests/laws/members.py has no instance of {', '.join(missing)}: add one, so that the laws run over it")
    return members


def named(members: Iterable[Any]) -> list[Any]:
    """For `parametrize`: each member, or tuple of members, under a short name of its own."""

    def name(member: Any) -> str:
        if isinstance(member, tuple):
            return "-".join(name(part) for part in member)
        return repr(member).replace(" ", "")[:60] if not hasattr(member, "betas") else f"{type(member).__name__}({len(member.betas)})"

    return [pytest.param(member, id=f"{i}:{name(member)}") for i, member in enumerate(members)]


schedules: list[Schedule] = complete(
    SCHEDULES,
    [
        Linear(),
        Linear(T=10),
        Linear(T=None),
        Cosine(),
        Cosine(clip=None),
        SigmoidSchedule(),
        SigmoidSchedule(T=20, tau=0.7),
        VPSDE(),
        SubVP(),
        Straight(),
        Straight(T=50),
        VE(),
        EDM(),
        EDM(T=40),
        Table(betas=tuple(0.01 + 0.005 * i for i in range(40))),
        LogSNRTable(log_snr=tuple(9.0 - 0.6 * i - 0.02 * i * i for i in range(20))),
        LogSNRTable(log_snr=(10.0, 9.5, 2.0, -1.0, -1.2, -8.0), T=50),
        Shifted(base=Linear(), shift=2.0),
        Shifted(base=Straight(), shift=3.0),
        Shifted(base=Cosine(clip=None), shift=0.5),
        ZeroTerminalSNR(),
        ZeroTerminalSNR(base=VPSDE()),
    ],
)

grids: list[Grid] = complete(
    GRIDS,
    [
        Full(),
        Trailing(),
        Uniform(),
        Leading(),
        Quadratic(),
        Quadratic(start=0.8),
        LogSNR(),
        Karras(),
        Karras(rho=3.0),
        Level(),
        Level(shift=3.0),
        Listed(at=(0.9, 0.5, 0.1)),
        Below(),
        Below(base=LogSNR(), begin=0.7),
    ],
)

parameterizations: list[Parameterization] = complete(
    PARAMETERIZATIONS, [Eps(), X0(), V(), V(sigma_data=0.5), Flow(), Score(), PosteriorMean(), EDMPreconditioning(sigma_data=0.5)]
)

pairs = [(schedule, parameterization) for schedule in schedules for parameterization in parameterizations]
legal_pairs = [pair for pair in pairs if legal(*pair) is None]
illegal_pairs = [pair for pair in pairs if legal(*pair) is not None]

weightings: list[Weighting] = complete(
    WEIGHTINGS, [Simple(), Bound(), MinSNR(), Sigmoid(), P2(), P2(k=0.5, gamma=0.5), EDMWeighting(sigma_data=0.5), Target()]
)

times: list[Times] = complete(
    TIMES,
    [
        UniformTimes(),
        Stratified(),
        Stratified(base=LogitNormal(std=2.0)),
        LogitNormal(),
        LogitNormal(mean=0.2, std=2.0),
        LogNormalSigma(),
        LogNormalSigma(mean=0.0, std=3.0),
    ],
)

losses: list[LossSettings] = complete(
    LOSSES,
    [
        *(Denoising(weighting=weighting) for weighting in weightings),
        Denoising(uncertainty=True),
        Denoising(importance=True),
        VariationalBound(variance="small"),
        VariationalBound(variance="large"),
        VariationalBound(variance="learned"),
        Hybrid(),
        Stepwise(reduced=False),
        Stepwise(reduced=True),
        Stepwise(reduced=True, variance="large"),
        LearnedSchedule(),
    ],
)
continuous_losses = [loss for loss in losses if isinstance(loss, Denoising)]  # the others are defined on a chain

samplers: list[Sampler] = complete(
    SAMPLERS,
    [
        Ancestral(variance="small"),
        Ancestral(variance="large"),
        Ancestral(variance="learned"),
        Ancestral(variance="analytic"),
        DDIM(),
        DDIM(eta=0.5),
        DDIM(eta=1.0),
        *dict.fromkeys(preset.value for preset in PRESETS if preset.value not in (Ancestral(), DDIM())),
        Multistep(order=1, noise=1.0),
        Multistep(rule="exact"),
        Multistep(prediction="eps"),
        Multistep(order=1, corrector=True),
        Multistep(corrector=True, rule="bh1"),
        Multistep(rule="bh1", noise=1.0),
        Multistep(corrector=True, rule="bh1", noise=0.7),
        Multistep(variable="ratio", order=3),
        Multistep(variable="level", order=2, noise=0.5, rule="exact"),
        Multistep(variable="time", order=2, corrector=True),
        SingleStep(prediction="x0", order=3),
        SingleStep(churn=5.0),
        EulerMaruyama(),
        Langevin(corrections=2),
        Restart(),
        Restart(low=0.1, high=1.0, repeats=2, inner=2),
    ],
)
ode_samplers = [sampler for sampler in samplers if not sampler.stochastic]
stochastic_samplers = [sampler for sampler in samplers if sampler.stochastic]

shapes: list[tuple[int, ...]] = [(5,), (3, 8), (2, 4, 4), (1, 4, 3), (2, 3, 4, 4)]
