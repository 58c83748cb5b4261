"""`--prompt` and `--like`: what a model that is told by text, or by a picture, is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import check, setting
from ddpm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import NetworkDenoiser

MOST = 100_000  # prompts of a file


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What is asked for in words, or shown."""

    prompt: tuple[str, ...] | None = setting(
        None, 'what to draw, in words, "a three above a seven"; several, one --prompt each, are dealt evenly', repeat=True, group="what"
    )
    prompts: str | None = setting(None, "file with a prompt on each line", group="what")
    like: str | None = setting(None, "picture to draw after, for a model trained with --reference; or DATA:ROW", group="what")
    text_encoder: str | None = setting(
        None, "folder of the encoder the model was trained with, if it is no longer where it was", group="what"
    )

    def __post_init__(self) -> None:
        problems = ["prompts: a file of prompts and --prompt; give one of the two"] if self.prompt and self.prompts else []
        if self.like is not None and (self.prompt or self.prompts):
            problems.append("like: a model is told in words or by a picture; give --prompt or --like")
        check(self, problems)

    @property
    def texts(self) -> list[str]:
        """The prompts, in order. Raises: ConfigError for a file that cannot be read, or holds none."""
        if self.prompts is None:
            return [text.strip() for text in self.prompt or ()]
        path = Path(self.prompts).expanduser()
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"--prompts: {path}: {reason}") from error
        texts = [line for line in lines if line]
        if not 1 <= len(texts) <= MOST:
            raise ConfigError(f"--prompts: {path} holds {len(texts):,} prompts; allowed are 1 to {MOST:,}, one on each line")
        return texts

    def told(
        self, model: NetworkDenoiser, document: Mapping[str, Any], n: int, *, guided: bool = False
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The condition of n samples, prompts dealt evenly and in order, and the text of each, empty where none was asked for.

        Where nothing is asked for, a model that knows an unconditional answer is told nothing; guided is refused then.

        Raises: ConfigError for a model that is not told so, for one that must be told, and as `ddpm.prompts`.
        """
        about = model.text
        asked = self.texts
        if about is None:
            given = {"prompt": self.prompt, "prompts": self.prompts, "like": self.like, "text-encoder": self.text_encoder}
            if wrong := [f"--{name}: this model was trained without --text or --reference" for name, value in given.items() if value]:
                raise ConfigError.of(wrong)
            return {}, []
        from ddpm.denoiser.asking import nothing, prompts, references

        flag = "--like PICTURE" if about.kind == "picture" else '--prompt "TEXT"'
        blank = (not asked and self.like is None) or not all(asked)
        if blank and document["cond_dropout"] == 0.0:
            raise ConfigError(f"{flag.split(' ')[0]}: this model was trained with --cond-dropout 0, so it must be told; give {flag}")
        if guided and not any(asked) and self.like is None and not (document["classes"] or document["vector"]):
            raise ConfigError(f"--guidance: is towards what is asked for, and nothing is; give {flag}")
        if asked:
            many = self._tokens(prompts, model, asked)
            dealt = [i * len(asked) // n if n >= len(asked) else i for i in range(n)]
            return {"tokens": many[dealt]}, [asked[i] for i in dealt]
        if self.like is not None:
            return {"tokens": self._tokens(references, model, self._picture(model)).expand(n, -1, -1)}, []
        return {"tokens": nothing(about, n)}, []

    def beside(
        self, cond: dict[str, torch.Tensor] | None, model: NetworkDenoiser, document: Mapping[str, Any], n: int
    ) -> dict[str, torch.Tensor] | None:
        """The condition of n samples with a class in it, or none, and what is asked for here; None where that is nothing at all."""
        told, _ = self.told(model, document, n)
        if cond is None and not (self.texts or self.like):
            return None
        if cond is None and document["classes"]:
            raise ConfigError("--prompt: this model knows classes too and must be told one beside the prompt; name it with --class")
        return {**{key: value.expand(n, *value.shape[1:]) for key, value in (cond or {}).items()}, **told}

    def _tokens(self, make: Any, model: NetworkDenoiser, asked: Any) -> torch.Tensor:
        return make(model, asked, folder=self.text_encoder)["tokens"]

    def _picture(self, model: NetworkDenoiser) -> torch.Tensor:
        """The reference picture, (1, C, H, W) in the data's units."""
        import torch

        from ddpm.data.beside import image_condition
        from ddpm.data.single_sample import read_one
        from ddpm.denoiser import LatentCodec

        assert self.like is not None
        codec = model.codec.pixels if isinstance(model.codec, LatentCodec) else model.codec
        picture = read_one(self.like, model.data_shape, codec)[None]
        assert model.text is not None
        if codec.bins is None or model.text.levels == codec.bins:
            return torch.from_numpy(picture)
        if codec.bins != (0.0, 255.0):
            raise ConfigError("--like: this model's references were condition images of their own levels; use ddpm.references in Python")
        return torch.from_numpy(image_condition(picture, None, self.like))  # they lay beside the samples in training


def quoted(texts: list[str]) -> str:
    """For the line that says what was drawn: the first few prompts."""
    different = list(dict.fromkeys(texts))
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return f" of {', '.join(repr(text) for text in different[:3])}{more}" if different else ""
