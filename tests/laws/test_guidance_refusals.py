"""Guidance that makes no sense is refused where it is made; dynamic thresholding is the published one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from guided import KINDS, ByClass, ExactClassifier, kinds
from worlds import close, plain_codec, toy, unit

from ddpm.denoiser import Prediction, V
from ddpm.errors import ConfigError
from ddpm.guidance import AutoGuided, ClassifierGuided
from ddpm.process import VPSDE, Linear, Process
from ddpm.sampling.clip import clipped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": math.nan}, "guidance: got nan"),
        ({"scale": math.inf}, "guidance: got inf"),
        ({"rescale": 1.5}, "rescale: got 1.5"),
        ({"interval": (3.0, 0.3)}, "interval: got 3,0.3; must be 0 <= low < high"),
        ({"interval": (-1.0, 0.3)}, "interval: got -1,0.3"),
        ({"interval": (math.nan, 0.3)}, "interval: got nan"),
        ({"interval": (1e6, 1e7)}, "never act"),
        ({"interval": (0.0, 1e-9)}, "never act"),
    ],
)
def test_options_that_make_no_sense(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", "\\(")):
        kinds(ByClass(Process(VPSDE())))[kind](**{"scale": 2.0, **options})


def test_partners_that_do_not_fit() -> None:
    truth, small, other = ByClass(Process(VPSDE())), ByClass(Process(VPSDE()), (3,)), ByClass(Process(Linear()))
    fewer = ByClass(Process(VPSDE()))
    fewer.classes = 2
    for partner, word in ((small, "shape"), (other, "schedule"), (fewer, "classes")):
        with pytest.raises(ConfigError, match=f"{word}: the weak model's"):
            AutoGuided(truth, partner, 2.0)
        classifier = ExactClassifier(partner)
        classifier.classes = partner.classes
        with pytest.raises(ConfigError, match=f"{word}: the classifier's .* ddpm classifier RUN"):
            ClassifierGuided(truth, classifier, 2.0)
    with pytest.raises(ConfigError, match="no class is asked for"):
        ClassifierGuided(truth, ExactClassifier(truth), 2.0)(unit(2, 2), truth.process.at(0.5))


def test_dynamic_thresholding_is_the_published_one() -> None:
    """s, the quantile of |x0|, at least 1; x0 to [-s, s], over s."""
    network = toy(Linear(), V(), (2, 5))
    x, at = unit(3, 2, 5), network.process.at(0.5)
    x0 = 3.0 * network(x, at).x0
    network.forward = lambda x, at, cond=None: Prediction(x0, x)  # type: ignore[method-assign]
    for quantile in (0.5, 0.9, 1.0):
        reach = x0.abs().flatten(1).float().quantile(quantile, dim=1).clamp(min=1.0).double()[:, None, None]
        close(clipped(network.bind(), plain_codec(2), "dynamic", x, quantile)(x, at).x0, x0.clamp(-reach, reach) / reach)
    with pytest.raises(ConfigError, match="clip_quantile: got 0"):
        clipped(network.bind(), plain_codec(2), "dynamic", x, 0.0)
