"""Frozen encoders, of captions and of reference pictures: their settings, and what turns either into tokens."""

from __future__ import annotations

from ddpm.networks.encoders.settings import EncoderSettings

__all__ = ["EncoderSettings"]
