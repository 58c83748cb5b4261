"""Networks: maps (x, c_noise, cond) -> Tensor that know nothing of diffusion. Importing this package does not import torch."""

from __future__ import annotations

from ddpm.networks.config import AutoencoderConfig, CondSpec, MLPConfig, UNetConfig

NETWORKS = (UNetConfig, MLPConfig)
"""The family: every network's settings; the name in a configuration is the class's name."""

__all__ = ["NETWORKS", "AutoencoderConfig", "CondSpec", "MLPConfig", "UNetConfig"]
