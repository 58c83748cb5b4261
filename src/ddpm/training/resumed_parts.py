"""What a run carries inside beside the network it trains, an autoencoder or the base of a cascade, when the run is resumed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ddpm.denoiser import NetworkDenoiser
from ddpm.errors import ConfigError
from ddpm.training.build import described_base, described_text
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.config import TrainConfig


def carry_on(saved: Checkpoint, config: TrainConfig, denoiser: NetworkDenoiser, say: Callable[[str], None]) -> None:
    """Before a checkpoint is loaded: the run keeps the base it began with, whatever the folder named now holds; data encoded by another
    autoencoder than the run's are refused. ConfigError also where one was given then and not now, or the other way round.
    """
    run, document = saved.path.parent, saved.document("config")
    problems = [
        f"{name}: {run} was begun with{'' if then else 'out'} --{name}; {'give it again' if then else 'leave it out'}, or use another --out"
        for name, then, now in (
            ("base", "base" in document, config.cascade.base is not None),
            ("autoencoder", "autoencoder" in document, config.autoencoder is not None),
        )
        if then != now
    ]
    if not problems and denoiser.autoencoder is not None and not _same(saved, "autoencoder", denoiser.autoencoder):
        problems.append(f"autoencoder: {config.autoencoder} is not the one {run} was begun with; name that one, or use another --out")
    if not problems and (then := described_text(document)) != (now := denoiser.text):
        flag = next(one.flag for one in (now, then) if one is not None)
        if then is None or now is None:
            problems.append(
                f"{flag}: {run} was begun {'without' if then is None else 'with'} an encoder; ask for the same, or use another --out"
            )
        elif then.identity != now.identity:
            problems.append(
                f"{flag}: {run} was begun with another encoder, {then.asked}, not {now.asked}; name that one, or use another --out"
            )
    if problems:
        raise ConfigError.of(problems)
    if denoiser.base is None or denoiser.base_denoiser is None:
        return
    kept = described_base(document["base"])
    if kept.about != denoiser.base.about or not _same(saved, "base_denoiser", denoiser.base_denoiser):
        say(f"base: {config.cascade.base} is not, or no longer, what {run} was begun with; the run keeps the base it has")
    device = next(iter(denoiser.parameters())).device
    kept.denoiser.to(device)
    denoiser.stand_on(kept._replace(noise=denoiser.base.noise, drawn=denoiser.base.drawn))


def _same(saved: Checkpoint, name: str, part: nn.Module) -> bool:
    """Whether a part of the model has the weights it has in the checkpoint."""
    held = {key.removeprefix(f"{name}."): tensor for key, tensor in saved.tensors("model").items() if key.startswith(f"{name}.")}
    own = part.state_dict()
    return held.keys() == own.keys() and all(held[key].shape == own[key].shape and torch.equal(held[key], own[key].cpu()) for key in held)
