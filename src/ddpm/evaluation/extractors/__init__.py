"""What turns samples into vectors: the published Inception-v3, an encoder trained on the data themselves, the entries as they are."""

from __future__ import annotations

from ddpm.evaluation.extractors.extractor import Extractor, Raw
from ddpm.evaluation.extractors.inception import Inception
from ddpm.evaluation.extractors.learned import Learned

__all__ = ["Extractor", "Inception", "Learned", "Raw"]
