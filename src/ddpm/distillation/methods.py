"""The ways to distil, as settings. Each is a loss: the student is a denoiser like any other, and the one Trainer trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ddpm.config import check, setting
from ddpm.denoiser.student import Student
from ddpm.objective.settings import LossSettings
from ddpm.objective.times import Times, UniformTimes
from ddpm.process import Karras, Level, default_grid

if TYPE_CHECKING:
    from ddpm.objective.losses import Loss
    from ddpm.process import Process

MOST = 16  # stages of consistency, the gap of the last being 2^-MOST


@dataclass(frozen=True, kw_only=True)
class Distillation(LossSettings):
    """What all have in common: the model that is distilled, and what of it the student keeps."""

    teacher: str = setting("", "run folder of the model that is distilled", filled=True)
    guidance: float = setting(1.0, "scale of classifier-free guidance the teacher is asked under; 1: none")
    variance: bool = setting(False, "the teacher's network has a variance output, which the student keeps without use", filled=True)
    told: float = setting(
        1.0, "largest guidance scale the teacher's network was told in training, and the student's is; 1: none", low=1.0, filled=True
    )

    @property
    def learned_variance(self) -> bool:
        """As the teacher's network, whose weights the student starts from."""
        return self.variance

    @property
    def guided(self) -> bool:
        """As the teacher's network."""
        return self.told > 1.0


def guided_once(method: Distillation) -> list[str]:
    """What is wrong with a guidance scale that would have no effect."""
    if method.guidance == 1.0 or not (isinstance(method, Guidance) or getattr(method, "source", "teacher") == "data"):
        return []
    why = "learns every scale itself" if isinstance(method, Guidance) else "never asks the teacher"
    return [f"guidance: got {method.guidance:g}, but {type(method).__name__} {why}; leave it at 1"]


def off_circle(process: Process, predicted: str) -> str:
    """What is wrong with a model for `ContinuousConsistency`: "" where it predicts V and alpha^2 + sigma^2 = 1."""
    import torch

    ends = process.at(torch.linspace(0.0, 1.0, 9, dtype=torch.float64))
    if predicted == "V" and bool((ends.alpha.square() + ends.sigma.square() - 1.0).abs().max() < 1e-9):
        return ""
    return (
        f"method ContinuousConsistency: this model predicts {predicted} on {type(process.schedule).__name__}; it takes V on a schedule "
        "with alpha^2 + sigma^2 = 1; use Consistency"
    )


def jumping(process: Process, steps: int, *, even: bool = False) -> tuple[float, ...]:
    """The instants of a student of so many steps, from t = 1. even: where the usual grid ends at the least noise that is trained on, which
    leaves the last jump nothing to do, the levels are cut evenly.
    """
    grid = default_grid(process, steps)
    times: list[float] = (Level() if even and isinstance(grid, Karras) else grid).times(process, steps).tolist()
    return tuple(times)


@dataclass(frozen=True, kw_only=True)
class Progressive(Distillation):
    """One step of the student for two of the teacher's. Repeated, the number of steps is halved each time.

    The student's prediction at t is fitted to the x0 whose deterministic step lands where two steps of the teacher do, with the truncated
    weight max(SNR, 1). Reference: Salimans, Ho, 2022, arXiv:2202.00512, algorithm 2 and section 4 (truncated SNR).
    """

    fine: tuple[float, ...] = setting((), "the teacher's instants, falling; every second, from the first on, is the student's", filled=True)

    def __post_init__(self) -> None:
        odd = len(self.fine) % 2
        check(self, [f"fine: got {len(self.fine)} instants, must be twice the student's"] if odd else [])

    def student(self, process: Process) -> Student:
        """Steps between every second of the teacher's instants."""
        return Student(method="progressive", meaning="step", times=self.fine[::2], guidance=self.told)

    def build(self) -> Loss:
        """A `ProgressiveLoss`."""
        from ddpm.distillation.progressive import ProgressiveLoss

        return ProgressiveLoss(self)


@dataclass(frozen=True, kw_only=True)
class Guidance(Distillation):
    """The guided prediction in one call instead of two, with the scale as an input of the network.

    Reference: Meng et al., 2022, arXiv:2210.03142, section 3.1.
    """

    most: float = setting(8.0, "largest scale; those of training are even from 1 to it", above=1.0, high=1000.0)

    @property
    def guided(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        check(self, guided_once(self))

    def student(self, process: Process) -> Student:
        """A mean, of the data as guidance would have them."""
        return Student(method="guidance", meaning="mean", guidance=self.most)

    def build(self) -> Loss:
        """A `GuidanceLoss`."""
        from ddpm.distillation.guidance import GuidanceLoss

        return GuidanceLoss(self)


@dataclass(frozen=True, kw_only=True)
class Consistent(Distillation):
    """What consistency has in common, in finite steps and in the limit: along a trajectory the student's answer stays the same.

    The answer is where the trajectory ends; with `steps` > 1 it is where it comes to the end of the segment t lies in, of as many as steps:
    a jump, alpha_e x0_hat + sigma_e eps_hat. Reference: Heek et al., 2024, arXiv:2403.06807, algorithm 1 (where x0 is compared, here x_e).
    """

    source: Literal["teacher", "data"] = setting("teacher", "whose trajectory it is: by the teacher's flow, or by the data of the batch")
    steps: int = setting(
        1, "jumps of the student, its only way then; 1: a map to the data, which takes any number of steps", low=1, high=1024
    )
    times: Times = setting(UniformTimes(), "which noise levels are drawn")

    told_as: ClassVar[str] = "consistency"

    def student(self, process: Process) -> Student:
        """A map from every instant, or jumps between its own."""
        method = f"{self.told_as} from {self.source}"
        if self.steps == 1:
            return Student(method=method, meaning="map")
        return Student(method=method, meaning="step", times=jumping(process, self.steps, even=True))


@dataclass(frozen=True, kw_only=True)
class Consistency(Consistent):
    """The prediction at t is fitted to the student's own at a nearby s < t of the same trajectory, whose end it must share.

    x_s is where the teacher's flow leads from x_t by Heun's step (source = teacher), or the data of the batch by Euler's (source = data:
    consistency training, where the teacher is only the start): the same data with the same noise, in the mean over which row of the batch
    x_t was made of. s comes closer to t as training goes on: u_s = (1 - gap) u_t in the level u = sigma/(alpha + sigma), counted from the
    segment's end, gap = 2^-k in stage k = first, first + 1 ...; at k = 0 (s is the end) a step is regressed, in a map the mean of the
    teacher, or of the batch.

    Reference: Song et al., 2023, arXiv:2303.01469, algorithms 2 and 3; no average as target, Pseudo-Huber metric, weight 1/(u_t - u_s):
    Song, Dhariwal, 2023, arXiv:2310.14189, table 1; the shrinking gap: Geng et al., 2024, arXiv:2406.14548, section 3 (there in sigma);
    the mean over the batch: Wang et al., 2024, arXiv:2410.18958 (variance-reduced target).
    """

    stages: int = setting(7, "stages of equal length; the gap is halved from each to the next", low=1, high=MOST + 1)
    first: int = setting(1, "stage to begin with; 0 regresses the data, or the teacher's mean", low=0, high=MOST)
    huber: float = setting(0.00054, "c/sqrt(D) of the metric sqrt(|d|^2 + c^2) - c; 1: nearly the squared error", above=0.0)

    def __post_init__(self) -> None:
        last = self.first + self.stages - 1
        fine = [f"stages: the last gap is 2^-{last}, which float32 does not resolve; first + stages - 1 is at most {MOST}"] * (last > MOST)
        check(self, [*guided_once(self), *fine])

    def build(self) -> Loss:
        """A `ConsistencyLoss`."""
        from ddpm.distillation.consistency import ConsistencyLoss

        return ConsistencyLoss(self)


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Consistent):
    """Consistency in the limit s -> t: the network is moved along the derivative of its prediction on the trajectory.

    For networks that predict v on a schedule with alpha^2 + sigma^2 = 1. Its own derivative is found by forward-mode differentiation.
    Waves of a clock that reads 0 to 1000 change a hundred times faster than anything to be learned, and the derivative is theirs; the
    student therefore gets a slower clock, and learns to read it during the warm-up, whose target is the velocity alone.

    Deviations from the published method (with sigma_data = 1): noise levels even in t by default, divided by their density; the warm-up a
    share of the run; the tangent's norm a root mean square; from data the velocity in the mean over the batch, as of Consistency; no
    learned weight of each level. Where the tangent is small, next to t = 1 and
    wherever the map is found already, such a weight makes up for it, and what is left to be learned is lost among what is not.

    Reference: Lu, Song, 2024, arXiv:2410.11081, algorithm 1 (sCD with source = teacher, sCT with source = data) and section 4.1 (clock).
    """

    finite: float = setting(
        0.0, "share of the run that goes in finite steps first, as of Consistency from stage 0 on: for few updates", low=0.0, high=1.0
    )
    stages: int = setting(5, "stages of that share, the gap of the last being 2^(1 - stages)", low=1, high=MOST + 1)
    warmup: float = setting(
        0.1,
        "share of the run, from its begin, over which the network's own derivative is taken into account more and more",
        low=0.0,
        high=1.0,
    )
    clock: float = setting(10.0, "what the student's clock reads at t = 1, where the teacher's reads more", above=0.0)
    soften: float = setting(0.1, "c of the tangent g/(|g| + c); large: hardly normalised", above=0.0)

    told_as: ClassVar[str] = "continuous consistency"

    def __post_init__(self) -> None:
        check(self, guided_once(self))

    def build(self) -> Loss:
        """A `ContinuousLoss`."""
        from ddpm.distillation.continuous import ContinuousLoss

        return ContinuousLoss(self)


@dataclass(frozen=True, kw_only=True)
class Matching(Distillation):
    """A generator whose samples, with noise, have the density the teacher knows: no pairs, no trajectories, no adversary.

    A second network, trained along, learns the score of what the generator makes; the generator follows the difference of the two.

    The gradient is (x_hat_fake - x_hat_real) / mean|x_hat_real - x| as in the published algorithm 2: eqs. 7 and 8 with alpha_t = 1, so that
    on schedules where alpha falls to 0 the noisiest levels are not left out.

    Reference: Yin et al., 2023, arXiv:2311.18828, algorithm 2; several steps: Yin et al., 2024, arXiv:2405.14867, section 4.4. Without the
    first's regression, and without the second's adversary, simulated inputs (here noisy data) and several updates of the second network
    for each of the generator (here one). Beginning below t = 1: Zhou et al., 2024, arXiv:2404.04057 (sigma_init).
    """

    steps: int = setting(1, "steps of the generator", low=1, high=1024)
    begin: float = setting(2.5, "noise over signal the generator is told to begin at, where noise alone is handed to it", above=0.0)
    low: float = setting(0.02, "least t at which densities are compared", above=0.0, below=1.0)
    high: float = setting(0.98, "largest", above=0.0, high=1.0)

    def __post_init__(self) -> None:
        check(self, [f"low: got {self.low} to {self.high}, must be below high"] if self.low >= self.high else [])

    def student(self, process: Process) -> Student:
        """A map from the instants asked for."""
        return Student(method="matching", meaning="map", times=self.instants(process))

    def instants(self, process: Process) -> tuple[float, ...]:
        """Even in the level sigma/(alpha + sigma), from `begin` down; on a chain at its knots."""
        import torch

        level = self.begin / (1.0 + self.begin)
        places = torch.arange(self.steps, 0, -1, dtype=torch.float64) / self.steps * level
        times, length = process.at_level(places).t, process.schedule.T
        if length is not None:
            times = ((times * length).round().clamp(min=1) / length).unique().flip(0)
        found: list[float] = times.tolist()
        return tuple(found)

    def build(self) -> Loss:
        """A `MatchingLoss`."""
        from ddpm.distillation.matching import MatchingLoss
        from ddpm.training.state import load

        loss = MatchingLoss(self)
        if self.teacher:
            loss.use(load(self.teacher), load(self.teacher))
        return loss


METHODS = (Progressive, Guidance, Consistency, ContinuousConsistency, Matching)
