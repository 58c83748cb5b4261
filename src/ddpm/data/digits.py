"""The embedded default: scikit-learn's 1,797 pictures of handwritten digits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.data.found import Found


def handwritten() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """scikit-learn's pictures as rows of levels 0..16, (1797, 64), and their digits (1797,)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # tables instead, says its type, where pandas is installed; not unless asked for
    return np.asarray(images, dtype=np.float64), np.asarray(labels, dtype=np.int64)


def read_digits() -> Found:
    """1,797 real 8x8 grey pictures, levels 0..16 as uint8, ten classes; needs no network.

    Rows keep scikit-learn's order, in which the writers of the first half differ from those of the second.

    Reference: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository.
    """
    images, labels = handwritten()
    return Found(
        name="digits",
        kind="image",
        samples=np.ascontiguousarray(images.reshape(-1, 1, 8, 8), dtype=np.uint8),
        cond={"class": labels},
        classes=tuple("0123456789"),
        bins=(0.0, 16.0),
    )
