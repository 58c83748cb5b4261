"""Is our Inception the one that FID is defined by? The same random weights in this package's and in torch-fidelity's, the same pictures.

    pip install torch-fidelity && python benchmarks/inception_agreement.py

torch-fidelity's extractor is the published graph moved to PyTorch. Compared: its resize, features and logits, on 8-bit pictures of several
sizes; and the Frechet distance, kernel distance and Inception score of the same features by its own functions. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import library
from torch import Tensor

from ddpm.evaluation.extractors.inception import InceptionV3, resized
from ddpm.metrics.frechet import frechet
from ddpm.metrics.inception import inception_score
from ddpm.metrics.kernel import kernel_distance
from ddpm.metrics.moments import Moments


def settled(network: InceptionV3) -> InceptionV3:
    """Random weights whose activations neither vanish nor explode, with moving averages that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bn.bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif name.endswith("conv.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
    return network


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> int:
    """Compare and print."""
    extractor: Any = library("torch_fidelity.feature_extractor_inceptionv3")
    ours = settled(InceptionV3())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(ours.state_dict(), path)
        names = ["2048", "logits_unbiased"]
        theirs = extractor.FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=str(path))
    result: dict[str, float] = {}
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for size in ((32, 32), (256, 256), (299, 299), (400, 310)):
            x = torch.randint(0, 256, (4, 3, *size), generator=generator).to(torch.uint8)
            mine, given = ours(x), theirs(x)
            result |= {f"features {size}": apart(mine[0], given[0]), f"logits {size}": apart(mine[1], given[1])}
            resize = library("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
            result[f"resize {size}"] = apart(resized(x.float()), resize(x.float(), size=(299, 299), align_corners=False))
    a, b = (torch.randn(3000, 64, generator=generator, dtype=torch.float64) * scale + 0.1 for scale in (1.0, 1.2))
    fid: Any = library("torch_fidelity.metric_fid")
    moments = [{"mu": one.numpy().mean(0), "sigma": np.cov(one.numpy(), rowvar=False)} for one in (a, b)]
    there = fid.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    result["frechet"] = abs(frechet(Moments.of(a), Moments.of(b)) / there - 1)
    kid: Any = library("torch_fidelity.metric_kid")
    settings = {
        "kid_subsets": 1,
        "kid_subset_size": 3000,
        "kid_degree": 3,
        "kid_gamma": None,
        "kid_coef0": 1,
        "verbose": False,
        "rng_seed": 0,
    }
    result["kernel"] = abs(kernel_distance(a, b).value / kid.kid_features_to_metric(a, b, **settings)["kernel_inception_distance_mean"] - 1)
    isc: Any = library("torch_fidelity.metric_isc")
    there = isc.isc_features_to_metric(a, splits=10, shuffle=False)["inception_score_mean"]
    result["inception score"] = abs(inception_score(a).raw / there - 1)
    print(json.dumps({name: float(f"{value:.2e}") for name, value in result.items()}))
    return 0 if max(result.values()) < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
