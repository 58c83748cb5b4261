"""Break the package on purpose, and see a law break: `python tests/laws/mutations.py` ends with exit code 1 if a mutation survives.

Three mistakes that libraries in use have made: sigma_t written for sigma_s, the previous instant re-derived in a second place,
a velocity returned as noise. Each is made in a temporary copy of src/; nothing in the repository is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAWS = "tests/laws/"


@dataclass(frozen=True)
class Mutation:
    """One text of one file of src/ddpm replaced by another, and the law files that ought to notice."""

    name: str
    file: str
    right: str
    wrong: str
    laws: tuple[str, ...]


PUPILS = ("test_consistency.py", "test_pooled.py", "test_continuous.py", "test_matching.py")
SAMPLERS = ("test_samplers_stochastic.py", "test_samplers_ode.py")
MUTATIONS = (
    Mutation(
        "sigma_t for sigma_s: the posterior's variance",
        "process/process.py",
        "small = s.sigma * kept.sqrt()",
        "small = t.sigma * kept.sqrt()",
        ("test_process.py",),
    ),
    Mutation(
        *("sigma_t for sigma_s: the posterior's mean", "process/process.py", "c_xt = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2"),
        *("c_xt = t.alpha / s.alpha * (t.sigma / t.sigma) ** 2", ("test_process.py",)),
    ),
    Mutation(
        *("sigma_t for sigma_s: DDIM's direction", "process/process.py", "s.alpha.clone(), s.sigma * (1.0 - eta**2 * kept)"),
        *("s.alpha.clone(), t.sigma * (1.0 - eta**2 * kept)", SAMPLERS),
    ),
    Mutation(
        *("the previous instant re-derived: DDIM, t - 1/steps", "sampling/ddim.py", "implicit(*pairs(at), self.eta)"),
        *("implicit(model.process.at((times - 1 / len(times)).clamp(min=0.0)), pairs(at)[1], self.eta)", SAMPLERS),
    ),
    Mutation(
        *("the previous instant re-derived: Ancestral, T // steps", "sampling/ancestral.py", "s, t = pairs(at)"),
        *("s, t = process.at((times - (1000 // len(times)) / 1000).clamp(min=0.0)), pairs(at)[1]", ("test_samplers_stochastic.py",)),
    ),
    Mutation(
        *("sigma_t for sigma_s: multistep methods", "process/flow.py", "s.alpha.clone(), s.sigma * q, s.sigma"),
        *("s.alpha.clone(), t.sigma * q, s.sigma", SAMPLERS),
    ),
    Mutation(
        *("the previous instant re-derived: multistep", "sampling/multistep.py", "t, s = self.at.take(rows), self.at.take(rows + 1)"),
        *("t, s = self.at.take(rows), self.process.at((self.at.t[rows] - 1 / len(self.at.t)).clamp(min=0.0))", SAMPLERS),
    ),
    Mutation(
        *("half a difference: the weight of the third prediction", "sampling/integrals.py", "(v - nodes[:, i : i + 1]) / (nodes[:, j"),
        *("(v - nodes[:, i : i + 1]) / (1 + (count == 3)) / (nodes[:, j", SAMPLERS),
    ),
    Mutation(
        *("a corrector that forgets what the predictor had added", "sampling/multistep.py", "again[:, 1:] -= ahead[:-1, :-1]"),
        *("again[:, 1:] -= 0.5 * ahead[:-1, :-1]", SAMPLERS),
    ),
    Mutation(
        *("sigma_t for sigma_s: the way back up", "sampling/singlestep.py", "up, std = process.transition(now, begin)"),
        *("up, std = process.transition(now, begin)[0], begin.sigma", ("test_samplers_stochastic.py",)),
    ),
    Mutation(
        *("a velocity returned as noise: what is remembered", "sampling/multistep.py", 'if kind == "x0" else prediction.eps\n'),
        *('if kind == "x0" else prediction.eps - prediction.x0\n', SAMPLERS),
    ),
    Mutation(
        *("a velocity returned as noise: parameterizations", "denoiser/parameterization.py", "(at.alpha * output - a * x) / d, variance)"),
        *("(at.alpha * output - a * x) / d - (b * x - at.sigma * output) / d, variance)", ("test_parameterization.py",)),
    ),
    Mutation(
        *(
            "a velocity returned as noise: exact denoisers",
            "denoiser/exact.py",
            "eps, x0 = (share * sigma * solved).sum(1), (share * (self.means + gain)).sum(1)",
        ),
        *("eps, x0 = (share * (sigma * solved - self.means - gain)).sum(1), (share * (self.means + gain)).sum(1)", ("test_denoisers.py",)),
    ),
    Mutation(
        *(
            "a warm-up without effect: continuous consistency",
            "distillation/continuous.py",
            "self.ramp * (cos * sin * x + change)",
        ),
        *("(cos * sin * x + change)", PUPILS),
    ),
    Mutation(
        *("segments that end clean: continuous consistency", "distillation/continuous.py", "segment_end(process, denoiser.times, time)"),
        *("segment_end(process, (), time)", PUPILS),
    ),
    Mutation(
        *("a jump from a border to itself: segments", "distillation/segments.py", "inner >= time"),
        *("inner > time", PUPILS),
    ),
    Mutation(
        *("finite steps of the teacher's flow whatever was asked: continuous", "distillation/continuous.py", "source=settings.source, "),
        *("", PUPILS),
    ),
    Mutation(
        *("two answers under different dropout: continuous consistency", "distillation/continuous.py", "        again()\n"),
        *("", PUPILS),
    ),
    Mutation(
        *("rows of another condition in the mean of the batch: consistency", "distillation/consistency.py", "pooled(x0, eps, t, cond)"),
        *("pooled(x0, eps, t, None)", PUPILS),
    ),
    Mutation(
        *("rows of another condition in the mean of the batch: continuous", "distillation/continuous.py", "pooled(x0, eps, at, cond)"),
        *("pooled(x0, eps, at, None)", PUPILS),
    ),
    Mutation(
        *("hidden rows told apart: the mean of the batch", "distillation/pooled.py", "            unlike &= ~(hidden[:, None] & hidden)\n"),
        *("", PUPILS),
    ),
    Mutation(
        *("a difference of rounding: consistency under autocast", "distillation/consistency.py", "autocast(x.device.type, enabled=False)"),
        *("autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type))", PUPILS),
    ),
    Mutation(
        *("a gradient that is not normalised: matching", "distillation/matching.py", "said.x0 - real) / size"),
        *("said.x0 - real) / size.mean()", PUPILS),
    ),
    Mutation(
        *("a teacher that drops: distillation", "distillation/teacher.py", "denoiser.eval().requires_grad_(False)"),
        *("denoiser.requires_grad_(False)", PUPILS),
    ),
)


def broken_laws(mutation: Mutation, folder: Path) -> list[str]:
    """The laws that fail with the mutation made in a copy of src under `folder`; the first two are enough."""
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    file = source / "ddpm" / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.right) != 1:
        raise SystemExit(
            f"{mutation.name}: src/ddpm/{mutation.file} no longer holds {mutation.right!r} exactly once; bring this mutation up to date"
        )
    file.write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    where = subprocess.run(
        [sys.executable, "-c", "import ddpm; print(ddpm.__file__)"], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    if not Path(where.stdout.strip()).resolve().is_relative_to(source.resolve()):
        raise SystemExit(f"the laws would run on {where.stdout.strip()}, not on the mutated copy in {source}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "--maxfail=2",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *(LAWS + law for law in mutation.laws),
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutation.name}: the laws could not be run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return re.findall(r"^FAILED (?:\S*/)?(\S+::\w+)", done.stdout, re.MULTILINE)


def main() -> int:
    """Try every mutation; 1 if one survives."""
    survivors = 0
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            laws = list(dict.fromkeys(broken_laws(mutation, Path(folder))))
        survivors += not laws
        print(f"{'caught ' if laws else 'SURVIVED'} {mutation.name}: {', '.join(laws) or 'no law broke'}", flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} mutations caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
