"""What is minimised: weightings and times as curves, the losses, and the exact T-step bound."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.objective.settings import LOSSES, Denoising, Hybrid, LearnedSchedule, LossSettings, Stepwise, VariationalBound
from ddpm.objective.times import TIMES, LogitNormal, LogNormalSigma, Stratified, Times, UniformTimes
from ddpm.objective.weighting import P2, WEIGHTINGS, Bound, EDMWeighting, LevelWeighting, MinSNR, Sigmoid, Simple, Target, Weighting

if TYPE_CHECKING:
    from ddpm.objective.adversarial import Critic as Critic
    from ddpm.objective.autoencoding import AutoencodingLoss as AutoencodingLoss
    from ddpm.objective.bound import decoder_nll as decoder_nll
    from ddpm.objective.bound import gaussian_kl as gaussian_kl
    from ddpm.objective.bound import mean_flat as mean_flat
    from ddpm.objective.bound import prior_term as prior_term
    from ddpm.objective.bound import step_term as step_term
    from ddpm.objective.bound import variational_bound as variational_bound
    from ddpm.objective.classification import noisy_cross_entropy as noisy_cross_entropy
    from ddpm.objective.learned_schedule import LearnedScheduleLoss as LearnedScheduleLoss
    from ddpm.objective.losses import Draws as Draws
    from ddpm.objective.losses import Loss as Loss
    from ddpm.objective.losses import target_error as target_error

_MODULES = {  # these are torch modules, imported when first asked for
    "AutoencodingLoss": "ddpm.objective.autoencoding",
    "Critic": "ddpm.objective.adversarial",
    **dict.fromkeys(("decoder_nll", "gaussian_kl", "mean_flat", "prior_term", "step_term", "variational_bound"), "ddpm.objective.bound"),
    "noisy_cross_entropy": "ddpm.objective.classification",
    "LearnedScheduleLoss": "ddpm.objective.learned_schedule",
    **dict.fromkeys(("Draws", "Loss", "target_error"), "ddpm.objective.losses"),
}

__all__ = [
    "LOSSES",
    "P2",
    "TIMES",
    "WEIGHTINGS",
    "AutoencodingLoss",
    "Bound",
    "Denoising",
    "Draws",
    "EDMWeighting",
    "Hybrid",
    "LearnedSchedule",
    "LearnedScheduleLoss",
    "LevelWeighting",
    "LogNormalSigma",
    "LogitNormal",
    "Loss",
    "LossSettings",
    "MinSNR",
    "Sigmoid",
    "Simple",
    "Stepwise",
    "Stratified",
    "Target",
    "Times",
    "UniformTimes",
    "VariationalBound",
    "Weighting",
    "decoder_nll",
    "gaussian_kl",
    "mean_flat",
    "noisy_cross_entropy",
    "prior_term",
    "step_term",
    "target_error",
    "variational_bound",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.objective' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
