"""The embedded default: scikit-learn's 1,797 pictures of handwritten digits."""

from __future__ import annotations

import numpy as np

from ddpm.data.found import Found


def read_digits() -> Found:
    """1,797 real 8x8 grey pictures, levels 0..16 as uint8, ten classes; needs no network.

    Rows keep scikit-learn's order, in which the writers of the first half differ from those of the second.

    Reference: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Found(
        name="digits",
        kind="image",
        samples=np.ascontiguousarray(images.reshape(-1, 1, 8, 8), dtype=np.uint8),
        cond={"class": labels.astype(np.int64)},
        classes=tuple("0123456789"),
        bins=(0.0, 16.0),
    )
