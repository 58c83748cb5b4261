"""CIFAR-10 from its archive; needs the folder named by the environment variable DDPM_DATA_DIR."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import DataSettings, open_data

ARCHIVE = Path(os.environ.get("DDPM_DATA_DIR", "")) / "cifar10-train.tar.xz"


@pytest.mark.skipif(
    not os.environ.get("DDPM_DATA_DIR") or not ARCHIVE.exists(), reason="NOT RUN: set DDPM_DATA_DIR to the folder of cifar10-train.tar.xz"
)
def test_the_archive_loads_directly_in_one_pass() -> None:
    start = time.process_time()
    dataset = open_data(DataSettings(data=str(ARCHIVE)))
    seconds = time.process_time() - start
    card = dataset.card
    assert (card.shape, card.dtype, card.count, card.held_out, card.bins) == ((3, 32, 32), "uint8", 50_000, 5_000, (0, 255))
    assert card.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert card.class_counts == (5_000,) * 10 and card.unreadable == () and card.notices == ()
    assert np.bincount(dataset.cond["class"][dataset.held_rows]).tolist() == [500] * 10
    assert np.allclose(card.mean, [125.3, 122.9, 113.9], atol=0.3)  # those of the original files
    assert isinstance(dataset.samples, np.ndarray)
    assert seconds < 60, f"{seconds:.0f} s of processor time; the one pass takes about 11"
