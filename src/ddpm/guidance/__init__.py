"""Guidance: a denoiser in, a denoiser out."""

from ddpm.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
