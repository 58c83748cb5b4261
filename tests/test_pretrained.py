"""DINOv2 and CLIP through transformers, with small random networks saved as theirs are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import from_arrays
from ddpm.denoiser import Card
from ddpm.errors import ConfigError
from ddpm.evaluation.extractors import Pretrained

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 1, 12, 12)).astype(np.uint8)


@pytest.fixture
def card() -> Card:
    return from_arrays(PICTURES, name="pictures").card


def test_without_the_library_it_says_what_to_do(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs the library transformers: pip install"):
        Pretrained("clip", card)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_features_are_the_library_s(card: Card, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs pip install 'ddpm[diffusers]'")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, **small)).save_pretrained(tmp_path / "dinov2")
    vision = transformers.CLIPVisionConfig(image_size=56, intermediate_size=64, projection_dim=24, **small)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "clip")
    x = torch.from_numpy(PICTURES)
    dinov2, clip = (Pretrained(kind, card, tmp_path / kind) for kind in ("dinov2", "clip"))  # type: ignore[arg-type]
    assert dinov2.features(x).shape == (6, 32) == (6, dinov2.dim) and clip.features(x).shape == (6, 24) == (6, clip.dim)
    assert dinov2.identity != clip.identity and dinov2.identity == Pretrained("dinov2", card, tmp_path / "dinov2").identity
    processor = transformers.CLIPImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False)
    pictures = [np.repeat(picture.transpose(1, 2, 0), 3, axis=2) for picture in PICTURES]
    with torch.inference_mode():
        theirs = clip.network(pixel_values=processor(pictures, return_tensors="pt")["pixel_values"]).image_embeds
    assert (clip.features(x) - theirs).abs().max() < 0.05 * theirs.abs().max()  # Pillow's filter rounds between its two passes
    for kind in ("dinov2", "clip"):
        with pytest.raises(ConfigError, match=f"extractor {kind}: "):
            Pretrained(kind, card, tmp_path / ("clip" if kind == "dinov2" else "nowhere"))  # type: ignore[arg-type]
