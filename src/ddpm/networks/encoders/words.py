"""An encoder of our own that needs no files: a vocabulary, and a fixed vector for each word, its place and the words around it."""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import ConfigError
from ddpm.networks.encoders.settings import EncoderSettings
from ddpm.random import generator

WORD = re.compile(r"\w+(?:['’-]\w+)*")
NEAR = 3  # known words named beside an unknown one
SHARE = 0.5  # length of the vector of a word around, beside 1 of the word's own
MOST = 50_000  # words of a vocabulary, which is stored with every checkpoint


def words(text: str) -> list[str]:
    """The words of a text in order, without case and punctuation."""
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())


def vocabulary(texts: Iterable[str], size: int, length: int, around: int = 3) -> EncoderSettings:
    """The encoder whose words are those of the texts; ConfigError where they hold none, or too many."""
    found = sorted({word for text in texts for word in words(text)})
    if not found:
        raise ConfigError("text: the captions hold no words")
    if len(found) > MOST:
        raise ConfigError(f"text: the captions hold {len(found):,} different words, more than {MOST:,}; use an encoder of transformers")
    return EncoderSettings(kind="words", size=size, length=length, vocabulary=tuple(found), around=around)


class Words:
    """Token i of a text is u(word i) + u(place i) + 1/2 sum_o u(o, word i + o), 0 < |o| <= `around`: unit vectors of fixed random
    directions, the same in every model.

    A word is told with those around it, as by an encoder that has read whole sentences: "three" of "a three above a seven" and of "a three
    below a seven" differ, and attention can look for what is above something. From words and places alone the network would have to learn
    which place counts after which word. Words mean nothing here, nor are "cat" and "cats" alike: the network learns that, of what it is
    shown.
    """

    def __init__(self, about: EncoderSettings) -> None:
        self.about, self._known = about, frozenset(about.vocabulary)
        self._vectors: dict[str, NDArray[np.float64]] = {}

    def _unit(self, name: str) -> NDArray[np.float64]:
        if name not in self._vectors:
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
            drawn = generator(seed, "words").standard_normal(self.about.size)
            self._vectors[name] = drawn / np.linalg.norm(drawn)
        return self._vectors[name]

    def encode(self, inputs: Sequence[str]) -> list[NDArray[np.float16]]:
        """(L_i, E) of each text; unknown words are left out, what is too long is cut."""
        known = ([word for word in words(text) if word in self._known][: self.about.length] for text in inputs)
        rows = ([self._token(text, place) for place in range(len(text))] for text in known)
        return [np.array(row, np.float16).reshape(-1, self.about.size) for row in rows]

    def _token(self, text: Sequence[str], place: int) -> NDArray[np.float64]:
        """Of the word at a place. No word is called " 3" or " +3 cat": places, neighbours and words do not meet."""
        token = self._unit(text[place]) + self._unit(f" {place}")
        for gap in range(1, self.about.around + 1):
            for other in (place - gap, place + gap):
                if 0 <= other < len(text):
                    token = token + SHARE * self._unit(f" {other - place:+d} {text[other]}")
        return token

    def faults(self, text: str) -> list[str]:
        """Unknown words, each with those nearest to it, and too many of them."""
        found = words(text)
        problems = [f"the word {word!r} is unknown{self._near(word)}" for word in dict.fromkeys(found) if word not in self._known]
        if len(found) > self.about.length:
            problems.append(f"{len(found)} words, this model reads {self.about.length}; shorten it")
        return problems if found or not text.strip() else ["no word in it"]

    def _near(self, word: str) -> str:
        near = difflib.get_close_matches(word, self.about.vocabulary, n=NEAR, cutoff=0.5)
        known = near or list(self.about.vocabulary[:12])
        more = ", ..." if not near and len(self.about.vocabulary) > len(known) else ""
        return f"; {'nearest' if near else 'known'}: {', '.join(known)}{more}"
