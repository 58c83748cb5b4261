"""What an encoder is, as data cards and checkpoints say it; read without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """A frozen encoder that a model is told by: its kind, what its tokens are like, and what it is told apart from others by.

    kind: "words", a vocabulary with a fixed vector for each word; "text", a text encoder of `transformers`; "picture", an image tower of
    it. size: entries of a token; length: most tokens. vocabulary: the words, of "words"; around: words before and after each, of which its
    token tells too (none in older models). folder: where the files were, model: the class,
    sha256: of the files, of the other two. levels: what a picture's black and white are in the data's units.
    """

    kind: Literal["words", "text", "picture"]
    size: int
    length: int
    vocabulary: tuple[str, ...] = ()
    around: int = 0
    folder: str = ""
    model: str = ""
    sha256: str = ""
    levels: tuple[float, float] | None = None

    @property
    def identity(self) -> str:
        """32 hexadecimal digits of SHA-256 over all that tokens depend on: not where the files are."""
        what = (self.kind, self.size, self.length, self.vocabulary, self.model, self.sha256, self.levels)
        what += (self.around,) * bool(self.around)
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]

    @property
    def flag(self) -> str:
        """The setting that names such an encoder, under which messages speak of it."""
        return "reference" if self.kind == "picture" else "text"

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{len(self.vocabulary)} words" if self.kind == "words" else f"{self.model} of {self.folder}"

    @property
    def asked(self) -> str:
        """The same with the flags that make such a one."""
        flags = f" (--text-size {self.size} --text-length {self.length} --text-around {self.around})"
        return self.title + flags * (self.kind == "words")
