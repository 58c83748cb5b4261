"""`--init`: start from another run's weights, taking over what fits and listing what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm.errors import CheckpointError
from ddpm.training.averaging.weights import weight_set
from ddpm.training.build import described_vector
from ddpm.training.distributed.parallel import like
from ddpm.training.state import RunState, open_run

SHOWN = 5


MEANING = (
    "schedule",
    "parameterization",
    "clock",
    "codec",
    "cond",
    "classes",
    "learned_variance",
    "student",
)  # of config.json, beside the weights


def _weights(source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The averaged weights of a run and its config.json, or the tensors of a .safetensors file and nothing."""
    path = Path(source)
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"init: {path} cannot be read as safetensors: {error}") from error
    saved = open_run(path)
    return weight_set(saved).tensors(), saved.document("config")


def start_from(source: str, state: RunState, here: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Copy every tensor whose name and shape fit into the weights and their average; CheckpointError where none does.

    here: what this run's config.json will say; where the source's differs in what the weights mean, that is said.
    """
    weights, there = _weights(source)
    if there and there.get("vector") and there["vector"] == here["vector"]:
        state.denoiser.vector_codec = described_vector(there)  # the same numbers mean the same to the weights that read them
    own = dict(state.denoiser.named_parameters())
    fits = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    if not fits:
        raise CheckpointError(f"init: no tensor of {source} fits this network; it holds {', '.join(list(weights)[:SHOWN])} ...")
    other = [
        f"{name}: {tuple(weights[name].shape)} there, {tuple(own[name].shape)} here" for name in own if name in weights and name not in fits
    ]
    other += [f"{name}: not in {source}" for name in own if name not in weights]
    with torch.no_grad():
        for name, tensor in fits.items():
            own[name].copy_(like(tensor, own[name]))
            for average in state.averages:
                average.weights[name].copy_(like(tensor, own[name]))
    more = f" ... and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    say(
        f"started from {source}: {len(fits)} of {len(own)} tensors taken over"
        + (f"; left as they were: {'; '.join(other[:SHOWN])}{more}" if other else "")
    )
    for key in MEANING:
        if there and there.get(key) != here.get(key) and not (key == "student" and here.get(key)):  # a student begins as its teacher
            say(f"the weights were trained with another {key}: {there.get(key)} there, {here.get(key)} here")
