"""What turns samples into vectors: the published Inception-v3, DINOv2, CLIP, an encoder trained on the data, the entries as they are."""

from __future__ import annotations

from ddpm.evaluation.extractors.extractor import Extractor, Raw
from ddpm.evaluation.extractors.inception import Inception
from ddpm.evaluation.extractors.learned import Learned
from ddpm.evaluation.extractors.pretrained import Pretrained

__all__ = ["Extractor", "Inception", "Learned", "Pretrained", "Raw"]
