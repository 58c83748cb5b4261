"""Frozen encoders of transformers, small and random: what they tell, how a model finds its own again, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm
from captioned import UNET, captioned
from ddpm.cli import main
from ddpm.data import from_arrays
from ddpm.errors import ConfigError, MissingLibraryError
from ddpm.networks.encoders import EncoderSettings
from ddpm.networks.encoders.encoder import open_encoder
from ddpm.training.text import TextSettings
from ddpm.training.tokens import encoder_of, with_tokens
from small_runs import quietly, settings


def saved(kind: str, folder: Path, seed: int = 0) -> Path:
    """A small random encoder of a kind, with its tokenizer, as the library saves it."""
    transformers = pytest.importorskip("transformers", reason="needs pip install 'ddpm[text]'")
    torch.manual_seed(seed)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=384, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        transformers.T5EncoderModel(config).save_pretrained(folder)
        transformers.ByT5Tokenizer().save_pretrained(folder)
        return folder
    alphabet = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"aeholnortvwz", *(f"##{letter}" for letter in "abefghlnorstvwz")]
    if kind == "bert":
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "vocab.txt").write_text("\n".join(alphabet))
        config = transformers.BertConfig(
            vocab_size=len(alphabet),
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        transformers.BertModel(config).save_pretrained(folder)
        transformers.BertTokenizer(str(folder / "x" / "vocab.txt")).save_pretrained(folder)
        shutil.rmtree(folder / "x")
        return folder
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    if kind == "dinov2":
        transformers.Dinov2Model(transformers.Dinov2Config(**vision)).save_pretrained(folder)
    else:
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision, intermediate_size=32)).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_an_encoder_of_transformers_tells_what_it_says(kind: str, tmp_path: Path) -> None:
    from ddpm.networks.encoders.text import text_settings

    about = text_settings(saved(kind, tmp_path / kind), 30)
    encoder = open_encoder(about)
    texts = ["a zero", "a one above a two", ""]
    made = encoder.encode(texts)
    tokenizer, network = encoder.tokenizer, encoder.network  # type: ignore[attr-defined]
    with torch.inference_mode():
        alone = [network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy() for text in texts[:2]]
    assert all(np.allclose(a, b, atol=2e-2) and a.shape == b.shape for a, b in zip(made, alone, strict=False)) and len(made[2]) == 0
    assert about.size == 24 and about.length == 30 and encoder.encode(["a one " * 40])[0].shape == (30, 24)
    assert "tokens, this model reads 30; shorten it" in encoder.faults("a one " * 40)[0]
    if kind == "bert":
        assert encoder.faults("a ¿") == ["holds something that the encoder's tokenizer does not know"]
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training


@pytest.mark.filterwarnings("ignore")
def test_a_model_finds_its_encoder_again_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved("t5", tmp_path / "t5")
    config = settings(tmp_path / "run", network=UNET, text=TextSettings(encoder=str(folder)))
    denoiser = quietly(config, data=captioned()).denoiser
    assert denoiser.text is not None and (denoiser.text.model, denoiser.text.size) == ("T5EncoderModel", 24)
    drawn = ["sample", str(tmp_path / "run"), "--prompt", "a zero", "--n", "2", "--steps", "2", "--format", "npz"]
    assert main([*drawn, "--out", str(tmp_path / "one")]) == 0
    folder.rename(tmp_path / "moved")
    open_encoder.cache_clear()  # as in a new process
    assert main([*drawn, "--out", str(tmp_path / "two")]) == 2
    assert "is not at" in (said := capsys.readouterr().err) and "put the folder back, or name it with --text-encoder of ddpm sample" in said
    assert main([*drawn, "--out", str(tmp_path / "two"), "--text-encoder", str(tmp_path / "moved")]) == 0
    one, two = (np.load(next((tmp_path / out).glob("*.npz")))["arr_0"] for out in ("one", "two"))
    assert np.array_equal(one, two)
    other = saved("t5", tmp_path / "other", seed=1)
    assert main([*drawn, "--text-encoder", str(other)]) == 2
    assert "holds another encoder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="was begun with another encoder"):
        quietly(replace(config, steps=6, text=TextSettings(encoder=str(other))), data=captioned())
    quietly(replace(config, steps=6, text=TextSettings(encoder=str(tmp_path / "moved"))), data=captioned())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_a_model_is_told_by_a_picture(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / kind)
    config = settings(tmp_path / "run", network=UNET, text=TextSettings(reference=str(folder)))
    data = captioned()
    denoiser = quietly(config, data=data).denoiser
    cond = ddpm.references(denoiser, torch.from_numpy(data.samples[:2]))
    assert cond["tokens"].shape == (2, 5, 16) and not torch.allclose(cond["tokens"][0], cond["tokens"][1])
    assert main(["sample", str(tmp_path / "run"), "--like", "digits:3", "--n", "2", "--steps", "2", "--out", str(tmp_path / "like")]) == 0
    with pytest.raises(ConfigError, match="told by a picture; use references, --like"):
        ddpm.prompts(denoiser, "a zero")
    beside = np.random.default_rng(1).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    paired = from_arrays(np.asarray(data.samples), {"image": beside}, name="paired", bins=(0, 16))
    about = encoder_of(paired, TextSettings(reference=str(folder)))
    found = with_tokens(paired, about, cache=tmp_path / "cache")
    assert about.levels == (0.0, 255.0) and set(found.cond) == {"tokens"} and found.card.image_channels == 0
    assert np.array_equal(found.cond["tokens"][3], open_encoder(about).encode(beside[3:4])[0].astype(np.float32))


def test_encoders_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captioned()
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "transformers", None)
        for asked in (TextSettings(encoder=str(tmp_path)), TextSettings(reference=str(tmp_path))):
            with pytest.raises(MissingLibraryError, match=r"pip install 'ddpm\[text\]'"):
                encoder_of(data, asked)
    with pytest.raises(ConfigError, match="leave --text or --reference out"):
        TextSettings(encoder="words", reference="x")
    with pytest.raises(ConfigError, match="an encoder of what the model is told, and conditional is off"):
        ddpm.TrainConfig(text=TextSettings(encoder="words"), conditional=False)
    pytest.importorskip("transformers", reason="needs pip install 'ddpm[text]'")
    with pytest.raises(ConfigError, match=r"is no folder of an encoder: no config.json"):
        encoder_of(data, TextSettings(encoder=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 8}')
    with pytest.raises(ConfigError, match=r"holds no .safetensors; weights that are pickles are not loaded"):
        encoder_of(data, TextSettings(encoder=str(tmp_path)))
    with pytest.raises(ConfigError, match="not at"):
        open_encoder(EncoderSettings(kind="text", size=8, length=8, folder=str(tmp_path / "gone"), model="T5EncoderModel", sha256="0"))
