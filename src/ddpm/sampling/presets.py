"""Samplers under the names people know: each is settings of a member, so single ones can be changed beside the name."""

from ddpm.config import Preset
from ddpm.sampling.ancestral import Ancestral
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.multistep import Multistep
from ddpm.sampling.sampler import Sampler
from ddpm.sampling.singlestep import SingleStep
from ddpm.sampling.stochastic import Langevin

PRESETS = (
    Preset("ddpm", Ancestral()),
    Preset("euler", DDIM()),
    Preset("dpm++2m", Multistep()),
    Preset("dpm++3m", Multistep(order=3)),
    Preset("dpm++2s", SingleStep(prediction="x0", reach=0.5)),
    Preset("dpm-solver-2", SingleStep(prediction="eps", reach=0.5)),
    Preset("dpm-solver-3", SingleStep(prediction="eps", order=3)),
    Preset("heun", SingleStep()),
    Preset("edm", SingleStep(prediction="eps")),
    Preset("edm-churn", SingleStep(prediction="eps", churn=40.0, churn_low=0.05, churn_high=50.0, churn_noise=1.003)),
    Preset("unipc", Multistep(order=3, corrector=True)),
    Preset("unipc-bh1", Multistep(order=3, corrector=True, rule="bh1")),
    Preset("deis", Multistep(prediction="eps", variable="time", order=3, rule="exact")),
    Preset("ipndm", Multistep(prediction="eps", variable="index", order=4, rule="exact")),
    Preset("plms", Multistep(prediction="eps", variable="index", order=4, rule="exact")),
    Preset("lms", Multistep(prediction="eps", variable="ratio", order=4, rule="exact")),
    Preset("adams", Multistep(prediction="flow", variable="level", order=3, rule="exact", corrector=True)),
    Preset("sde-dpm++2m", Multistep(noise=1.0)),
    Preset("sde-dpm++3m", Multistep(order=3, noise=1.0)),
    Preset("sa-solver", Multistep(order=3, corrector=True, noise=1.0)),
    Preset("pc", Langevin()),
    Preset("annealed-langevin", Langevin(predictor="none", corrections=5)),
)
"""adams is Adams-Bashforth-Moulton in y = x/(alpha + sigma), where the flow is regular at both ends.

Sources of the numbers: edm-churn as published for ImageNet at 64x64 and 256 steps: Karras et al., 2022, arXiv:2206.00364, table 5; orders:
each paper's default. plms is another name of ipndm.
"""


def name_of(sampler: Sampler) -> str:
    """The preset a sampler is, where its class alone does not say it, or else its class."""
    own = (preset.name for preset in PRESETS if preset.value == sampler and not isinstance(sampler, Ancestral | DDIM))
    return next(own, type(sampler).__name__)
