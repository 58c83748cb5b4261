"""Text encoders of the library `transformers`, from a local folder; nothing is downloaded and no code of a folder is run.

Reference: Radford et al. 2021, arXiv:2103.00020 (CLIP); Raffel et al. 2020, arXiv:1910.10683 (T5); Xue et al. 2022, arXiv:2105.13626
(ByT5); Devlin et al. 2019, arXiv:1810.04805 (BERT). That frozen ones serve a diffusion model: Saharia et al., 2022, arXiv:2205.11487.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.errors import ConfigError
from ddpm.networks.encoders.files import described, first_line, hashed, library
from ddpm.networks.encoders.settings import EncoderSettings

BATCH = 64
TOWERS = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel", "mt5": "MT5EncoderModel",
          "umt5": "UMT5EncoderModel"}  # fmt: skip


def text_settings(folder: str | Path, length: int) -> EncoderSettings:
    """What the encoder in a folder is; length: most tokens, less where it takes less. ConfigError where there is none that can be used."""
    place = Path(folder).expanduser()
    config = described(place, "text")
    inner = getattr(config, "text_config", config)  # of CLIP as a whole, its text half
    size = getattr(inner, "hidden_size", None) or getattr(inner, "d_model", None)
    if not size or config.model_type in ("dinov2", "clip_vision_model", "vit"):
        raise ConfigError(f"text: {place} is a {config.model_type}, no encoder of text; an image tower is named by --reference")
    most = [length, *(int(value) for value in (getattr(inner, "max_position_embeddings", None),) if value)]
    most.append(min(int(_tokenizer(place).model_max_length), length))  # tokenizers without a limit say 10^30
    model = TOWERS.get(config.model_type, "AutoModel")
    return EncoderSettings(kind="text", size=int(size), length=min(most), folder=str(place), model=model, sha256=hashed(place))


def _tokenizer(folder: Path) -> Any:
    try:
        return library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library has an error for every way a folder can be wrong
        raise ConfigError(f"text: {folder} holds no tokenizer that can be read ({first_line(error)}); save it beside the model") from error


class TextTower:
    """The last hidden states of a text encoder, of a text's own tokens."""

    def __init__(self, about: EncoderSettings, folder: Path, device: torch.device) -> None:
        self.about, self.device, self.tokenizer = about, device, _tokenizer(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        kind = getattr(library(), about.model)
        try:
            self.network, report = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
        except Exception as error:  # likewise
            raise ConfigError(f"text: {folder} cannot be loaded as {about.model} ({first_line(error)})") from error
        if missing := [name for name in report["missing_keys"] if "pooler" not in name]:
            raise ConfigError(f"text: {folder} lacks {len(missing)} tensors of {about.model}, the first is {missing[0]}")
        self.network.eval().requires_grad_(False).to(device)

    def encode(self, inputs: Sequence[str]) -> list[NDArray[np.float16]]:
        """(L_i, E) of each text, end mark and all, cut at `about.length`; nothing of a blank one."""
        made: list[NDArray[np.float16]] = [np.zeros((0, self.about.size), np.float16)] * len(inputs)
        told = [place for place, text in enumerate(inputs) if text.strip()]
        for first in range(0, len(told), BATCH):
            some = told[first : first + BATCH]
            for place, tokens in zip(some, self._batch([inputs[place] for place in some]), strict=True):
                made[place] = tokens
        return made

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> list[NDArray[np.float16]]:
        given = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.about.length)
        ids, mask = (given[name].to(self.device) for name in ("input_ids", "attention_mask"))
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if not bool(states[mask.bool()].abs().max() < 65_504):  # of float16
            raise ConfigError(f"text: {self.about.title} gives values that are not finite, or too large to keep")
        return [row[there.bool()].half().cpu().numpy() for row, there in zip(states, mask, strict=True)]

    def faults(self, text: str) -> list[str]:
        """Too many tokens, and characters that the tokenizer has no token for."""
        if not text.strip():
            return []
        ids, marks = self.tokenizer(text, verbose=False)["input_ids"], self.tokenizer
        problems = [f"{len(ids)} tokens, this model reads {self.about.length}; shorten it"] if len(ids) > self.about.length else []
        ordinary = {marks.eos_token_id, marks.bos_token_id, marks.pad_token_id}  # CLIP's mark for the unknown is its end mark
        if marks.unk_token_id is not None and marks.unk_token_id not in ordinary and marks.unk_token_id in ids:
            problems.append("holds something that the encoder's tokenizer does not know")
        return problems
