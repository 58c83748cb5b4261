"""The data card: what is known of a data set before the first step, and all a model keeps of it."""

from __future__ import annotations

from dataclasses import dataclass

from ddpm.denoiser.fields import Fields
from ddpm.networks.encoders.settings import EncoderSettings


@dataclass(frozen=True, kw_only=True)
class Card:
    """Shape, units and statistics of a data set; stored with every model trained on it.

    All statistics are of the *training* rows (held-out rows excluded), per channel, in the data's own units.
    Shapes are channels first: (C, H, W) pictures, (C, L) signals, (C, T, H, W) video, (F,) tables (F counts as the channels).
    """

    name: str  # what the user called it: "digits", "photos.zip"
    kind: str  # "image" (decoded pictures) or "array"
    shape: tuple[int, ...]  # of one sample, channels first
    dtype: str  # of the samples as they come back: "uint8", "uint16", "float32", ...
    low: tuple[float, ...]  # smallest value of each channel
    high: tuple[float, ...]  # largest value of each channel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sigma_data: float  # RMS over all entries of the data as diffused, i.e. after `Codec.encode`
    bins: tuple[float, float] | None = (
        None  # (lowest, highest) integer level the format allows: digits (0, 16), 8-bit pictures (0, 255); None: continuous
    )
    classes: tuple[str, ...] = ()  # names; the class id is the position
    class_counts: tuple[int, ...] = ()
    vector: tuple[str, ...] = ()  # names of the entries of the vector condition
    tags: tuple[str, ...] = ()  # those of them that are tags: 1 where a sample has it, else 0
    vector_mean: tuple[float, ...] = ()  # of each entry; empty where there is no vector, and of runs of before it was measured
    vector_std: tuple[float, ...] = ()
    image_channels: int = 0  # channels of the image/field condition that is concatenated to the input
    mask_channels: int = 0  # of the mask that says which entries are there: 0: all of all samples; 1: the same for all channels; else each
    captions: int = 0  # samples that have one
    examples: tuple[str, ...] = ()  # a few of the captions
    tokens: EncoderSettings | None = None  # what makes tokens of the captions, or of pictures, where the data were opened with an encoder
    count: int = 0  # samples in all
    held_out: int = 0  # of which held out
    duplicates: int = 0  # samples that repeat an earlier one exactly
    unreadable: tuple[str, ...] = ()  # files that were skipped, with the reason
    notices: tuple[str, ...] = ()  # conversions done, counted: "3 palette images converted to RGB"
    fingerprint: str = ""  # SHA-256 over the decoded samples and conditions, in order
    normalise: str = "range"  # "range": [low, high] (or bins) to [-1, 1]; "standard": zero mean, unit standard deviation per channel

    fields: Fields | None = None  # of fields on a grid: their names, units, places and times

    @property
    def levels(self) -> int | None:
        """How many values a discretised entry can take (17 for the digits, 256 for 8-bit pictures); None for continuous data."""
        return None if self.bins is None else int(self.bins[1] - self.bins[0]) + 1
