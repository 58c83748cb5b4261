"""Told in words: captions read from data, tokens made once, prompts drawn, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddpm
from captioned import TEXTS, UNET, WORDS, captioned, folder_of_pictures
from ddpm.cli import main
from ddpm.config import from_dict, to_dict
from ddpm.data import Dataset, DataSettings, describe, from_arrays, open_data
from ddpm.distillation import Consistency, DistillConfig, distill
from ddpm.errors import ConfigError, DataError
from ddpm.networks.encoders.encoder import open_encoder
from ddpm.networks.encoders.settings import EncoderSettings
from ddpm.networks.encoders.words import Words, vocabulary
from ddpm.networks.encoders.words import words as words_of
from ddpm.training.config import CascadeSettings
from ddpm.training.text import TextSettings
from ddpm.training.tokens import Tokens, encoder_of, with_tokens
from small_runs import quietly, settings

FLAGS = ["--steps", "4", "--batch", "4", "--threads", "1", "--preview", "2", "--recipe", "none", "--network", "unet-config",
         "--network.channels", "8",
         "--network.mults", "1,2", "--network.blocks", "1", "--text", "words", "--text-size", "16"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on captioned pictures, trained from the command line."""
    home = tmp_path_factory.mktemp("text")
    out = home / "run"
    assert main(["train", "--data", str(folder_of_pictures(home / "pictures")), "--out", str(out), *FLAGS]) == 0
    return out


# --- captions in data ---------------------------------------------------------------------------------------------------------------------


def texts_of(dataset: Dataset) -> list[str]:
    assert dataset.texts is not None
    return [dataset.texts[i] for i in range(len(dataset))]


def test_captions_are_read_wherever_they_are_kept(tmp_path: Path) -> None:
    folder = folder_of_pictures(tmp_path / "pictures", 8)
    expected = [TEXTS[i % 4] for i in range(8)]
    found = open_data(DataSettings(data=str(folder)))
    assert texts_of(found) == expected and found.card.captions == 6 and found.card.classes == ()
    assert "captions       6 of 8 samples" in describe(found.card) and '"a zero above a one"' in describe(found.card)
    (folder / "metadata.jsonl").unlink()
    lines = ["file_name,label,text", *(f'{i:03d}.png,{i % 2},"{TEXTS[i % 4]}"' for i in range(8))]
    (folder / "labels.csv").write_text("\n".join(lines))
    both = open_data(DataSettings(data=str(folder)))
    assert texts_of(both) == expected and both.card.classes == ("0", "1")
    assert open_data(DataSettings(data=str(folder), labels="none")).texts is None
    x = np.zeros((3, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, text=np.array(["one", "zwei", "drei "]))
    assert texts_of(open_data(DataSettings(data=str(tmp_path / "x.npz"), holdout=0.0))) == ["one", "zwei", "drei"]
    other = from_arrays(x, {"text": ["one", "zwei", "tres"]}, holdout=0.0)
    assert other.card.fingerprint != from_arrays(x, {"text": ["one", "zwei", "drei"]}, holdout=0.0).card.fingerprint


def test_captions_stand_beside_pictures_in_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-000.tar", "w") as archive:
        for i in range(6):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(picture, "PNG")
            members = {"png": picture.getvalue()} | ({"txt": f"picture {i}\n".encode()} if i else {})
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for _ in range(2):  # the second time from the index
        found = open_data(DataSettings(data=str(tmp_path / "a-000.tar"), holdout=0.2))
        assert texts_of(found) == ["", *(f"picture {i}" for i in range(1, 6))] and found.card.captions == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["one"], "3 samples but captions of shape"),
        ([1, 2, 3], "captions of type int64; expected texts"),
        ([["a"], ["b"], ["c"]], "captions of shape"),
        (["a", "b", "c" * 200_000], "the caption of sample 2 has 200,000 characters"),
    ],
)
def test_captions_that_are_none_are_refused(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        from_arrays(np.zeros((3, 1, 8, 8), np.uint8), {"text": given})


def test_a_line_without_its_caption_is_named(tmp_path: Path) -> None:
    folder = folder_of_pictures(tmp_path / "pictures", 4)
    rows = [{"file_name": f"{i:03d}.png", **({"text": "x"} if i != 2 else {"text": 7})} for i in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"metadata.jsonl line 3: text is 7, no text"):
        open_data(DataSettings(data=str(folder)))


# --- words --------------------------------------------------------------------------------------------------------------------------------


def test_words_are_told_apart_and_so_are_their_places() -> None:
    assert words_of("A don't-know, Café 3.") == ["a", "don't-know", "café", "3"]
    about = vocabulary(TEXTS, 64, 5)
    assert about.vocabulary == ("a", "above", "alone", "left", "of", "one", "two", "zero", "zeros")
    encoder = Words(about)
    one, other, none, long = encoder.encode(["a one above", "above one a", "", "a " * 9])
    assert one.shape == (3, 64) and one.dtype == np.float16 and len(none) == 0 and len(long) == 5
    assert not np.allclose(one[0], other[2], atol=0.1)  # the same word elsewhere
    assert np.array_equal(Words(vocabulary(["above a one", "b"], 64, 9)).encode(["a one above"])[0], one)  # whatever other words there are
    wide = Words(vocabulary(TEXTS, 2048, 5))
    three, others = (wide.encode([text])[0].astype(float) for text in ("a one above", "left of zero"))
    assert np.abs(three @ others.T - np.eye(3)).max() < 0.2  # they share places alone
    assert encoder.faults("a one") == encoder.faults("") == []
    assert encoder.faults("a tow zzz") == ["the word 'tow' is unknown; nearest: two",
                                           "the word 'zzz' is unknown; known: " + ", ".join(about.vocabulary)]  # fmt: skip
    assert encoder.faults("a one a one a one") == ["6 words, this model reads 5; shorten it"] and encoder.faults("!?") == ["no word in it"]


def test_a_token_tells_of_the_words_around_it() -> None:
    """The sum by its formula; two texts with another relation differ in all their tokens."""
    encoder = Words(vocabulary(TEXTS, 64, 9))
    unit = encoder._unit
    tokens = encoder.encode(["one left of two zero"])[0].astype(float)
    around = unit(" -2 one") + unit(" -1 left") + unit(" +1 two") + unit(" +2 zero")
    np.testing.assert_allclose(tokens[2], unit("of") + unit(" 2") + around / 2, atol=2e-3)
    np.testing.assert_allclose(tokens[0], unit("one") + unit(" 0") + (unit(" +1 left") + unit(" +2 of") + unit(" +3 two")) / 2, atol=2e-3)
    above, alone = encoder.encode(["one above two", "one alone two"])
    assert all(np.linalg.norm(a - b) > 0.5 for a, b in zip(above.astype(float), alone.astype(float), strict=True))


def test_models_from_before_tokens_told_of_their_neighbours_keep_theirs() -> None:
    old = replace(vocabulary(TEXTS, 64, 9), around=0)
    new = vocabulary(TEXTS, 64, 9)
    assert old.identity != new.identity and "--text-around 0" in old.asked
    written = {key: value for key, value in to_dict(old).items() if key != "around"}  # as configurations were written then
    assert from_dict(EncoderSettings, written, where="config.json").identity == old.identity
    what = ("words", 64, 9, old.vocabulary, "", "", None)
    assert old.identity == hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    one, other = Words(old).encode(["a one above", "above one a"])
    assert np.allclose(one.sum(0), other.sum(0), atol=1e-2)  # the same words and places


# --- tokens, made once --------------------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_captions_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captioned()
    about = encoder_of(data, TextSettings(encoder="words", size=16))
    found = with_tokens(data, about, cache=tmp_path)
    tokens = found.cond["tokens"]
    assert isinstance(tokens, Tokens) and tokens.shape == (40, 6, 16) == (len(tokens), 6, 16) and found.card.tokens == about
    made = open_encoder(about).encode(TEXTS)
    for row in (0, 1, 2, 3, 38):
        assert (
            np.array_equal(tokens[row][: len(made[row % 4])], made[row % 4].astype(np.float32))
            and not tokens[row][len(made[row % 4]) :].any()
        )
    _, cond = found.batch(np.array([2, 7, 0]))
    assert np.array_equal(cond["tokens"], np.stack([tokens[2], tokens[7], tokens[0]])) and np.array_equal(
        tokens[1:3], tokens[np.array([1, 2])]
    )
    assert with_tokens(found, about) is found
    monkeypatch.setattr("ddpm.training.tokens.open_encoder", lambda *_: pytest.fail("read anew"))
    assert np.array_equal(with_tokens(data, about, cache=tmp_path).cond["tokens"][5], tokens[5])
    (files,) = (tmp_path / "tokens").iterdir()
    assert {file.name for file in files.iterdir()} == {"000000.npy", "000000-ends.npy", "about.json"}
    assert len(np.load(files / "000000.npy")) == sum(map(len, made))  # equal captions once


def test_tokens_in_many_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captioned()
    about = encoder_of(data, TextSettings(encoder="words", size=16))
    whole = with_tokens(data, about, cache=tmp_path / "one").cond["tokens"][np.arange(40)]
    monkeypatch.setattr("ddpm.training.tokens.SHARD", 2)  # of four different captions
    parts = with_tokens(data, about, cache=tmp_path / "many").cond["tokens"]
    (files,) = (tmp_path / "many" / "tokens").iterdir()
    assert len(list(files.glob("??????.npy"))) == 2 and parts.shape == whole.shape
    rows = np.random.default_rng(0).permutation(len(whole))
    assert np.array_equal(parts[rows], whole[rows]) and np.array_equal(parts[2], whole[2]) and whole[2].any()


def test_what_the_encoder_cannot_tell_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8)).astype(np.uint8)
    texts = ["a one", "a two two two", ""] * 13 + ["an odd one"]
    data = from_arrays(x, {"text": texts}, name="odd", bins=(0, 16), holdout=np.array([38, 39]))
    config = settings(tmp_path / "run", network=UNET, text=TextSettings(encoder="words", size=16, length=3))
    ddpm.train(config, data=data)
    said = capsys.readouterr().err
    assert "odd: 13 captions are longer than 3 tokens and cut (--text-length)" in said
    assert "odd: 1 held-out captions have words that no training caption has; these are left out" in said
    assert "odd: 13 samples have no caption; they are trained on as if it were hidden" in said
    ddpm.train(replace(config, out=str(tmp_path / "plain"), text=TextSettings()), data=data)
    assert "odd: has 27 captions, which are not used; --text words" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_encoder(tmp_path: Path) -> None:
    config = settings(tmp_path / "run", network=UNET, text=WORDS)
    quietly(config, data=captioned())
    quietly(replace(config, steps=6), data=captioned())
    for other, said in (
        (TextSettings(), "was begun with an encoder; ask for the same"),
        (TextSettings(encoder="words", size=32), r"another encoder, 9 words \(--text-size 16 .*, not 9 words \(--text-size 32"),
        (replace(WORDS, around=0), r"--text-around 3\), not 9 words \(--text-size 16 --text-length 64 --text-around 0\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            quietly(replace(config, steps=8, text=other), data=captioned())
    with pytest.raises(ConfigError, match="captioned has no captions; give them as a column"):
        quietly(replace(config, out=str(tmp_path / "other")), data=replace(captioned(), texts=None))


# --- from the command line ----------------------------------------------------------------------------------------------------------------


def test_prompts_are_drawn_and_kept_beside_the_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--prompt", "a zero above a one", "--prompt", "Two zeros, alone!", "--n", "4", "--steps", "2", "--guidance", "2"]
    assert main(["sample", str(run), *asked, "--out", str(tmp_path / "drawn")]) == 0
    assert "4 samples of 'a zero above a one', 'Two zeros, alone!' by " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "drawn" / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a zero above a one"] * 2 + ["Two zeros, alone!"] * 2
    assert json.loads((tmp_path / "drawn" / "manifest.json").read_text())["prompts"] == ["a zero above a one", "Two zeros, alone!"]
    (tmp_path / "drawn" / "grid.png").unlink()
    again = open_data(DataSettings(data=str(tmp_path / "drawn"), holdout=0.0))  # what was drawn is a data set with captions
    assert texts_of(again) == [row["text"] for row in rows]
    (tmp_path / "prompts.txt").write_text("a one left of a two\n\na zero\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--n", "2", "--steps", "2", "--format", "npz", "--out", str(tmp_path / "file")]
    assert main(["sample", str(run), *words]) == 0
    lines = (tmp_path / "file" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a one left of a two", "a zero"]


def test_python_draws_the_same_and_guidance_reaches_it(run: Path, tmp_path: Path) -> None:
    denoiser = ddpm.load(run)
    cond = ddpm.prompts(denoiser, ["a one left of a two", "a zero"])
    assert cond["tokens"].shape == (2, 6, 16) and denoiser.conditions == {"tokens"}
    drawn = ddpm.sample(denoiser, 2, cond=cond, steps=2)
    words = ["--prompt", "a one left of a two", "--prompt", "a zero", "--n", "2", "--steps", "2", "--format", "npz", "--precision", "fp32"]
    assert main(["sample", str(run), *words, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.npz")
    assert np.array_equal(np.moveaxis(np.load(path)["arr_0"], -1, 1), drawn.numpy())
    assert ddpm.prompts(ddpm.ClassifierFree(denoiser, 2.0), "a zero")["tokens"].shape == (1, 2, 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a zero above a tow"], "the word 'tow' is unknown; nearest: two"),
        (["--prompt", "a " * 65], "65 words, this model reads 64; shorten it"),
        (["--prompt", "?!"], "'?!': no word in it"),
        (["--prompt", "", "--guidance", "2"], '--guidance: is towards what is asked for, and nothing is; give --prompt "TEXT"'),
        (["--guidance", "2"], '--guidance: is towards what is asked for, and nothing is; give --prompt "TEXT"'),
        (["--like", "digits:3"], "this model is told by text; use prompts, --prompt"),
        (["--prompt", "a", "--prompts", "x.txt"], "a file of prompts and --prompt; give one of the two"),
        (["--prompts", "nowhere.txt"], "--prompts: nowhere.txt: No such file"),
        (["--prompt", "a zero", "--guidance", "2", "--guidance-kind", "classifier"], "a classifier knows no captions"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--n", "2", "--steps", "2", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_a_prompt_nothing_is_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, out in (([], "nothing"), (["--prompt", ""], "blank")):
        assert main(["sample", str(run), "--n", "2", "--steps", "2", "--format", "npz", "--out", str(tmp_path / out), *words]) == 0
    one, other = (np.load(next((tmp_path / out).glob("*.npz")))["arr_0"] for out in ("nothing", "blank"))
    assert np.array_equal(one, other)
    capsys.readouterr()
    untold = settings(tmp_path / "untold", network=UNET, text=WORDS)
    quietly(replace(untold, cond_dropout=0.0), data=captioned())
    assert main(["sample", str(tmp_path / "untold"), "--n", "2"]) == 2
    assert '--prompt: this model was trained with --cond-dropout 0, so it must be told; give --prompt "TEXT"' in capsys.readouterr().err
    quietly(settings(tmp_path / "plain", network=UNET), data=captioned())
    assert main(["sample", str(tmp_path / "plain"), "--prompt", "a"]) == 2
    assert "--prompt: this model was trained without --text or --reference" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="this model is not told by text or pictures"):
        ddpm.prompts(ddpm.load(tmp_path / "plain"), "a")


def test_every_command_takes_a_model_told_in_words(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(run.parent / "pictures" / "000.png")
    Image.fromarray(np.uint8(255) * (np.indices((8, 8))[0] > 3)).save(tmp_path / "mask.png")
    asked = ["--prompt", "a zero"]
    commands = [
        ["likelihood", str(run), "--route", "continuous", "--n", "2", "--draws", "1"],
        ["interpolate", str(run), picture, picture, "--n", "2", "--steps", "2", *asked, "--out", str(tmp_path / "between")],
        ["inpaint", str(run), "--image", picture, "--mask", str(tmp_path / "mask.png"), "--n", "2", "--steps", "2", *asked,
         "--out", str(tmp_path / "filled")],
        ["sample", str(run), "--from", picture, "--n", "2", "--steps", "4", *asked, "--out", str(tmp_path / "varied")],
        ["tune", str(run), "--nfe", "2", "--n", "2", "--budget", "3000", "--reference", "8", *asked],
    ]  # fmt: skip
    for words in commands:
        assert main(words) == 0, (words, capsys.readouterr().err)
    assert "given their captions" in capsys.readouterr().out


def test_students_and_stages_are_told_too(tmp_path: Path) -> None:
    data = captioned()
    config = settings(tmp_path / "run", network=UNET, text=WORDS)
    quietly(config, data=data)
    student = distill(
        tmp_path / "run", DistillConfig(method=Consistency(guidance=2.0), updates=2, batch=4, preview=0), data=data, quiet=True
    )
    assert student.denoiser.text == ddpm.load(tmp_path / "run").text is not None
    small = from_arrays(
        np.asarray(data.samples)[:, :, ::2, ::2].copy(), {"text": [TEXTS[i % 4] for i in range(40)]}, name="s", bins=(0, 16)
    )
    quietly(replace(config, out=str(tmp_path / "small")), data=small)
    stage = replace(config, out=str(tmp_path / "large"), cascade=CascadeSettings(base=str(tmp_path / "small")))
    large = quietly(stage, data=data).denoiser
    asked = ddpm.prompts(large, ["a zero", ""])
    assert ddpm.sample(ddpm.ClassifierFree(large, 2.0), 2, cond=asked, steps=2).shape == (2, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"base: is told by 9 words \(--text.*; train this stage with the same encoder"):
        quietly(replace(stage, out=str(tmp_path / "untold"), text=TextSettings()), data=data)
    card = (tmp_path / "large" / "README.md").read_text()
    assert "| told by | 9 words" in card
