"""An autoencoder of the library diffusers, AutoencoderKL, in place of our own. The library is imported when one is made, not before.

Its settings are its config.json, word for word; of them scaling_factor and shift_factor are not read: latents are normalised by what was
measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import CheckpointError, ConfigError, MissingLibraryError
from ddpm.networks.autoencoder import Autoencoder, Posterior
from ddpm.networks.config import nearest_sizes

KIND = "AutoencoderKL"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNSET = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
}  # what the library takes where nothing is said


class PretrainedAutoencoder(Autoencoder):
    """x (B, C, H, W) in [-1, 1] <-> z (B, latent, H / factor, W / factor); made by `load` or `remake`.

    Reference: Rombach et al., 2022, arXiv:2112.10752.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        known = {**UNSET, **settings}
        super().__init__(shape, known["latent_channels"], factor_of(settings))
        self.model, self.settings, self.codebook = model, dict(settings), None

    def encoded(self, x: Tensor) -> Posterior:
        """q(z | x), as the library has it; it keeps log std^2."""
        found = self.model.encode(x).latent_dist
        return Posterior(found.mean, 0.5 * found.logvar)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, H / factor, W / factor) -> x (B, C, H, W)."""
        return self.model.decode(z).sample

    def described(self) -> dict[str, Any]:
        """Its settings, under the library's name."""
        return {"diffusers": self.settings}


def factor_of(settings: Mapping[str, Any]) -> int:
    """How many times smaller the latents are along each axis: every level but the last halves."""
    return 2 ** (len({**UNSET, **settings}["block_out_channels"]) - 1)


def settings_of(folder: str | Path) -> dict[str, Any] | None:
    """What config.json says in a folder of an AutoencoderKL, without the notes of whoever saved it; None in a folder of something else.

    ConfigError for another network of the library.
    """
    try:
        held = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(held, dict) or "_class_name" not in held:
        return None
    if held["_class_name"] != KIND:
        raise ConfigError(f"autoencoder: {folder} holds diffusers' {held['_class_name']}; of its networks only {KIND} can be used")
    return {key: value for key, value in held.items() if not key.startswith("_")}


def problems(settings: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    """Why samples of `shape` cannot go through an AutoencoderKL, one sentence each; empty when all is well."""
    known = {**UNSET, **settings}
    channels, factor = known["in_channels"], factor_of(settings)
    found = []
    if known["out_channels"] != channels:
        found.append(f"autoencoder: takes {channels} channels and returns {known['out_channels']}; it must return what it takes")
    if len(shape) != 3 or shape[0] != channels:
        advice = "; --channels rgb makes three of grey pictures" if len(shape) == 3 and (shape[0], channels) == (1, 3) else ""
        found.append(f"autoencoder: got samples of {tuple(shape)}; this one takes pictures of {channels} channels{advice}")
    wrong = [f"{size} (nearest: {nearest_sizes(size, factor)})" for size in shape[1:] if size % factor]
    if wrong:
        found.append(f"autoencoder: needs sizes divisible by {factor}; not divisible: {', '.join(wrong)}; --size makes them so")
    return found


def load(folder: str | Path, shape: tuple[int, ...]) -> PretrainedAutoencoder:
    """The autoencoder of a folder as the library's `save_pretrained` writes it, for samples of `shape`, in float32 and evaluation mode.

    Nothing is downloaded, and no pickle is read. Raises ConfigError where the library is missing, CheckpointError where the weights are,
    or do not fit the settings.
    """
    settings, kind = settings_of(folder), _library().AutoencoderKL
    if settings is None:
        raise CheckpointError(f"{folder}: config.json is missing, or not of an {KIND}")
    try:
        model, report = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # a missing or damaged file, settings that make no network: the library has an error for each
        first = (str(error).splitlines() or [""])[0][:160]
        raise CheckpointError(f"{folder}: no weights in {WEIGHTS} that fit its config.json ({type(error).__name__}: {first})") from error
    for what, names in (("lacks", report["missing_keys"]), ("holds, beyond what config.json describes,", report["unexpected_keys"])):
        if names:
            raise CheckpointError(f"{folder}: {WEIGHTS} {what} {len(names)} tensors, the first is {sorted(names)[0]}")
    return PretrainedAutoencoder(model.float().eval(), settings, shape)


def remake(settings: Mapping[str, Any], shape: tuple[int, ...]) -> PretrainedAutoencoder:
    """The same with fresh weights, from the settings alone; ConfigError where the library is missing, or makes no network of them."""
    kind = _library().AutoencoderKL
    try:
        model = kind.from_config(dict(settings))
    except Exception as error:
        raise ConfigError(f"autoencoder: settings that diffusers makes no {KIND} of ({type(error).__name__}: {error})") from error
    return PretrainedAutoencoder(model.eval(), settings, shape)


def _library() -> Any:
    try:
        import diffusers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingLibraryError("autoencoder: an AutoencoderKL needs the library diffusers: pip install 'ddpm[diffusers]'") from error
    return diffusers
