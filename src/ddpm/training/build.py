"""From settings and a data card to a denoiser, and back from what a checkpoint says of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ddpm.config import from_dict, to_dict
from ddpm.denoiser import (
    Base,
    Card,
    Clock,
    Codec,
    EDMPreconditioning,
    Given,
    LatentCodec,
    NetworkDenoiser,
    Parameterization,
    Residuals,
    Student,
    default_clock,
)
from ddpm.errors import CheckpointError, ConfigError, MissingLibraryError
from ddpm.networks import pretrained
from ddpm.networks.autoencoder import Autoencoder
from ddpm.networks.config import AutoencoderConfig, CondSpec, MLPConfig, UNetConfig
from ddpm.networks.encoders import EncoderSettings
from ddpm.objective import Denoising, EDMWeighting, LearnedSchedule
from ddpm.process import Process, Schedule
from ddpm.random import torch_seed
from ddpm.training.augment import ENTRIES
from ddpm.training.config import FAMILIES, TrainConfig

NetworkConfig = UNetConfig | MLPConfig
LATER = ("x0", "augment", "guidance", "low", "mask", "tokens")  # of CondSpec: what config.json leaves out where there is none


def default_network(shape: tuple[int, ...], fit: bool = False) -> NetworkConfig:
    """MLP for vectors (F,); for (C, *axes) a U-Net with as many levels as the sizes allow, Ho's four at most, attention below the first.
    fit: for fields on a grid, whose sizes nobody chose; uneven ones are padded.
    """
    if len(shape) == 1:
        return MLPConfig()
    if fit:
        levels = 1 + sum(min(shape[1:]) >= 4 * 2**level for level in (1, 2, 3))
        return UNetConfig(channels=64, mults=(1, 2, 2, 2)[:levels], attention=(levels - 1,), fit=True)
    levels = 1
    while levels < 4 and all(size % 2**levels == 0 and size // 2**levels >= 4 for size in shape[1:]):
        levels += 1
    return UNetConfig(channels=64, mults=(1, 2, 2, 2)[:levels], attention=(1,) if levels > 1 else (0,))


def cond_spec(card: Card, config: TrainConfig) -> CondSpec:
    """What the network is conditioned on, given the data and whether labels are wanted."""
    tricks: dict[str, Any] = {
        "x0": config.tricks.self_condition, "augment": ENTRIES if config.tricks.augment else 0, "guidance": config.loss.guided,
        "low": config.cascade.base is not None, "mask": card.mask_channels,
    }  # fmt: skip
    if not config.conditional:
        return CondSpec(image=card.image_channels, **tricks)
    tokens = 0 if card.tokens is None else card.tokens.size
    return CondSpec(classes=len(card.classes), vector=len(card.vector), image=card.image_channels, tokens=tokens, **tricks)


def measured(config: TrainConfig, card: Card, *, own: bool = False) -> TrainConfig:
    """The settings with every `sigma_data` left open filled in from the data, and the network (unless it is the person's own) and clock
    chosen. ConfigError where the data cannot be trained on as the tricks ask.
    """
    if problems := config.tricks.refusals(card):
        raise ConfigError.of(problems)
    if isinstance(config.parameterization, EDMPreconditioning) and config.parameterization.sigma_data is None:
        config = replace(config, parameterization=replace(config.parameterization, sigma_data=card.sigma_data))
    loss = config.loss
    if isinstance(loss, Denoising | LearnedSchedule) and isinstance(loss.weighting, EDMWeighting) and loss.weighting.sigma_data is None:
        config = replace(config, loss=replace(loss, weighting=replace(loss.weighting, sigma_data=card.sigma_data)))
    return replace(
        config,
        network=None if own else config.network or default_network(card.shape, card.fields is not None),
        clock=config.clock or default_clock(config.schedule),
    )


def build_denoiser(
    config: TrainConfig,
    card: Card,
    network: nn.Module | None = None,
    through: tuple[Autoencoder, Codec] | None = None,
    base: Base | None = None,
) -> NetworkDenoiser:
    """A fresh denoiser for `measured` settings; the network's weights follow from the seed. network: a person's own module instead.
    through: the autoencoder whose latents the card describes, and the codec of its data. base: what draws the samples it enlarges.
    """
    assert config.clock is not None  # `measured` chose it
    spec = cond_spec(card, config)
    if network is None:
        assert config.network is not None  # likewise
        torch.manual_seed(torch_seed(config.seed, "network"))
        network = config.network.build(card.shape, 2 if config.loss.learned_variance else 1, spec)
    process = Process(config.schedule)
    return NetworkDenoiser(
        network,
        process,
        config.parameterization,
        config.clock,
        Codec.of(card),
        card.shape,
        learned_variance=config.loss.learned_variance,
        conditions=spec.keys,
        classes=spec.classes,
        self_condition=spec.x0,
        augmented=spec.augment,
        masked=spec.mask,
        guided=spec.guidance,
        student=config.loss.student(process),
        through=through,
        base=base,
        given=config.given,
        text=card.tokens if spec.tokens else None,
        vector_codec=Codec.of_vector(card) if spec.vector else None,
    )


def describe(denoiser: NetworkDenoiser, config: TrainConfig, card: Card, own: str | None) -> dict[str, Any]:
    """What the denoiser is, as config.json of a checkpoint says it; `own` names a person's own network class."""
    return {
        "schedule": to_dict(denoiser.process.schedule, named=True),
        "parameterization": to_dict(denoiser.parameterization, named=True),
        "clock": to_dict(denoiser.clock, named=True),
        "network": to_dict(config.network, named=True) if config.network is not None and own is None else {"own": own},
        "cond": {key: value for key, value in to_dict(cond_spec(card, config)).items() if value or key not in LATER},
        "cond_dropout": config.cond_dropout,
        "learned_variance": denoiser.learned_variance,
        **_encoded(denoiser.codec),
        "shape": list(denoiser.shape),
        "residuals": {"log_snr": list(denoiser.residuals.log_snr), "value": list(denoiser.residuals.value)} if denoiser.residuals else None,
        "classes": list(card.classes) if config.conditional else [],
        "vector": list(card.vector) if config.conditional else [],
        **({"tags": list(card.tags)} if config.conditional and card.tags else {}),
        **({"vector_codec": to_dict(denoiser.vector_codec)} if denoiser.vector_codec is not None else {}),
        **({"student": to_dict(denoiser.student)} if denoiser.student is not None else {}),
        **({"given": to_dict(denoiser.given, named=True)} if denoiser.given is not None else {}),
        **({"text": to_dict(denoiser.text)} if denoiser.text is not None else {}),
        **_below(denoiser.base),
        **({"fields": to_dict(card.fields)} if card.fields is not None else {}),
    }


def labelled(document: Mapping[str, Any]) -> bool:
    """Whether the model that config.json describes can be asked for something, by name, number, text or picture."""
    return bool(document["classes"] or document["vector"] or document.get("text") or document["cond"]["image"])


def _encoded(codec: Codec) -> dict[str, Any]:
    """The entries of config.json that say how data come into the space diffused in."""
    if not isinstance(codec, LatentCodec):
        return {"codec": to_dict(codec)}
    autoencoder = codec.autoencoder
    about = {
        "network": autoencoder.described(), "codec": to_dict(codec.pixels), "shape": list(autoencoder.shape), "scale": autoencoder.scale,
    }  # fmt: skip
    return {"codec": to_dict(codec.latent), "autoencoder": about}


def _below(base: Base | None) -> dict[str, Any]:
    """The entry of config.json that says what a stage of a cascade enlarges."""
    return {} if base is None else {"base": {"denoiser": dict(base.about), "noise": base.noise, "drawn": base.drawn}}


def described_autoencoder(about: Mapping[str, Any]) -> tuple[Autoencoder, Codec]:
    """The autoencoder that config.json describes, with fresh weights, and the codec of its data."""
    network, shape = about["network"], tuple(about["shape"])
    if "diffusers" in network:
        model = pretrained.remake(network["diffusers"], shape)
    else:
        model = from_dict(AutoencoderConfig, network, where="config.json").build(shape)
    scale = about.get("scale")  # runs of before it was kept, and autoencoders, whose loss has it, say nothing of it
    if scale is not None and not 0.0 < scale < math.inf:
        raise ConfigError(f"config.json: the autoencoder's scale is {scale}, must be positive")
    model.scale = scale
    return model, from_dict(Codec, about["codec"], where="config.json")


def described_vector(document: Mapping[str, Any]) -> Codec | None:
    """What config.json says of how the numbers of the vector are brought to the network; None of models of before, which see them as they
    are. CheckpointError for one of another length than the vector.
    """
    if not document.get("vector_codec"):
        return None
    codec = from_dict(Codec, document["vector_codec"], where="config.json")
    if not len(codec.shift) == len(codec.scale) == len(document["vector"]):
        raise CheckpointError(
            f"config.json: a codec of {len(codec.shift)} and {len(codec.scale)} entries for a vector of {len(document['vector'])}"
        )
    return codec


def described_text(document: Mapping[str, Any]) -> EncoderSettings | None:
    """The encoder of what a model is told, as config.json describes it; None for a model without."""
    return from_dict(EncoderSettings, document["text"], where="config.json") if document.get("text") else None


def described_base(about: Mapping[str, Any]) -> Base:
    """The stage below that config.json describes, with fresh weights."""
    return Base(rebuild(about["denoiser"]), about["denoiser"], float(about["noise"]), float(about["drawn"]))


def saved_residuals(document: Mapping[str, Any]) -> Residuals | None:
    """The residual moments of config.json, where they had been measured."""
    held = document["residuals"]
    if held is None:
        return None
    log_snr, value = (tuple(float(entry) for entry in held[name]) for name in ("log_snr", "value"))
    if len(log_snr) != len(value) or list(log_snr) != sorted(log_snr):
        raise CheckpointError(f"config.json: {len(log_snr)} log-SNRs for {len(value)} residuals, expected as many, rising")
    return Residuals(log_snr, value)


def refuse_autoencoder(document: Mapping[str, Any], where: str) -> None:
    """CheckpointError for config.json of an autoencoder, where a model is wanted."""
    if document.get("kind") == "autoencoder":
        raise CheckpointError(
            f"{where} is an autoencoder, no model that can be drawn from; train one in its latents: ddpm train --autoencoder"
        )


def rebuild(document: Mapping[str, Any], network: nn.Module | None = None, *, entries: int | None = None) -> NetworkDenoiser:
    """The denoiser that config.json describes, with fresh weights. A person's own network must be handed in again.

    entries: how many numbers the weights' file holds; a description of a larger network is refused before memory is taken for it.
    Raises CheckpointError where the description cannot be read or a network is missing, MissingLibraryError where a library is.
    """
    refuse_autoencoder(document, "this")
    try:
        own = document["network"].get("own")
        spec = from_dict(CondSpec, document["cond"], where="config.json")
        shape = tuple(document["shape"])
        if own and network is None:
            raise CheckpointError(f"this model was trained with your own network {own}; pass it: ddpm.load(run, network={own}(...))")
        if network is None:
            settings: NetworkConfig = from_dict(UNetConfig | MLPConfig, document["network"], where="config.json")  # type: ignore[arg-type]
            out = 2 if document["learned_variance"] else 1
            if entries is not None:
                with torch.device("meta"):
                    count = sum(p.numel() for p in settings.build(shape, out, spec).parameters())
                if count > entries:
                    raise CheckpointError(f"config.json describes a network of {count:,} weights, the file holds {entries:,} numbers")
            network = settings.build(shape, out, spec)
        codec = from_dict(Codec, document["codec"], where="config.json")
        if not len(codec.shift) == len(codec.scale) == shape[0]:
            raise CheckpointError(f"config.json: a codec of {len(codec.shift)} and {len(codec.scale)} channels for samples of {shape}")
        denoiser = NetworkDenoiser(
            network,
            Process(from_dict(Schedule, document["schedule"], FAMILIES, "config.json")),
            from_dict(Parameterization, document["parameterization"], FAMILIES, "config.json"),
            from_dict(Clock, document["clock"], FAMILIES, "config.json"),
            codec,
            shape,
            learned_variance=document["learned_variance"],
            conditions=spec.keys,
            classes=spec.classes,
            self_condition=spec.x0,
            augmented=spec.augment,
            masked=spec.mask,
            guided=spec.guidance,
            student=from_dict(Student, document["student"], where="config.json") if document.get("student") else None,
            through=described_autoencoder(document["autoencoder"]) if document.get("autoencoder") else None,
            base=described_base(document["base"]) if document.get("base") else None,
            given=from_dict(Given, document["given"], FAMILIES, "config.json") if document.get("given") else None,
            text=described_text(document),
            vector_codec=described_vector(document),
        )
        denoiser.residuals = saved_residuals(document)
        return denoiser
    except (CheckpointError, MissingLibraryError):
        raise
    except ConfigError as error:
        raise CheckpointError(f"config.json cannot be used: {error}") from error
    except Exception as error:  # whatever the parts trip on: a file that passes its hashes may still say anything
        raise CheckpointError(f"config.json does not describe a model: {type(error).__name__} {error}") from error
