"""Guidance: a denoiser in, a denoiser out."""

from ddpm.guidance.autoguidance import AutoGuided
from ddpm.guidance.classifier import Classifier, ClassifierGuided, NetworkClassifier
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.guidance.guided import Guided
from ddpm.guidance.operators import Convolution, Dense, Mask, Operator, Separable, blur, pool
from ddpm.guidance.posterior import DPS, MomentMatching, PiGDM, Posterior, Projection
from ddpm.guidance.told import Told

__all__ = [
    "DPS",
    "AutoGuided",
    "Classifier",
    "ClassifierFree",
    "ClassifierGuided",
    "Convolution",
    "Dense",
    "Guided",
    "Mask",
    "MomentMatching",
    "NetworkClassifier",
    "Operator",
    "PiGDM",
    "Posterior",
    "Projection",
    "Separable",
    "Told",
    "blur",
    "pool",
]
