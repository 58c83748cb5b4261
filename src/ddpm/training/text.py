"""The settings of being told in words, or by a picture."""

from __future__ import annotations

from dataclasses import dataclass

from ddpm.config import check, setting


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which frozen encoder makes tokens of captions, or of reference pictures, for the network to attend to.

    Reference: Rombach et al., 2022, arXiv:2112.10752, section 3.3 (attention to tokens); Saharia et al., 2022, arXiv:2205.11487 (frozen
    encoders of text).
    """

    encoder: str | None = setting(
        None,
        "what reads the captions: words, a vocabulary of their own that needs no files, or a folder of an encoder and tokenizer as "
        "transformers saves them (T5, CLIP, BERT ...); none: captions are not used",
        flag="text",
    )
    length: int = setting(64, "most tokens of a caption, the rest is cut; an encoder may take fewer", low=1, high=4096, flag="text-length")
    size: int = setting(128, "of words: entries of a token", low=8, high=4096, flag="text-size")
    around: int = setting(
        3,
        "of words: words before and after, of which each token tells too; 0 goes on with runs of before that",
        low=0,
        high=16,
        flag="text-around",
    )
    reference: str | None = setting(
        None,
        "folder of an image tower of transformers (CLIP, DINOv2), which tells the model what each picture shows, or, where the data have "
        "an image condition, what that shows; samples are then drawn after a picture",
    )

    def __post_init__(self) -> None:
        both = self.encoder is not None and self.reference is not None
        check(self, ["reference: a model is told by captions or by pictures; leave --text or --reference out"] if both else [])

    @property
    def wanted(self) -> bool:
        """Whether there is an encoder at all."""
        return self.encoder is not None or self.reference is not None
