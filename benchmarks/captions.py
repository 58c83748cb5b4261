"""Does the model draw what the words say? Scenes of two handwritten digits, with captions such as "a three above a seven".

    python benchmarks/captions.py                            words of the captions as the encoder, 20 CPU minutes of training
    python benchmarks/captions.py --encoder FOLDER           a frozen text encoder of transformers (T5, CLIP, BERT ...) saved there
    python benchmarks/captions.py --encoder random-t5        a frozen T5 over bytes of random weights: the path, without its knowledge
    python benchmarks/captions.py --figure docs/captions.png

Two real digits (scikit-learn's, 8x8) lie above one another, or beside, on a canvas of 16x16: "a three above a seven" and "a seven below a
three" are the same scene, and so for "left of" and "right of". Scenes are made of the first 898 digits only; ten of the hundred pairs (the
second digit three more than the first, upper or left first) are in no training scene. Each prompt is drawn, and read: which way the ink
lies, and what a classifier trained on the first 898 digits finds at both places. Right is a sample whose layout and both digits are those
of its prompt. Printed for each scale of guidance, and in the last line as one JSON object:
  composition   share right of prompts whose pairs were in training scenes (captions the model has read)
  unseen        share right of prompts for pairs that no training scene has
  layout, digit the same by part, over all prompts
  real          share right of real scenes, of the other 899 digits, which other people wrote: what reading can find at best
  blind         share right were each prompt answered with the sample of another: what chance is
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from budget import fitting
from digits import SPLIT, Array, half_pixel_shifts
from sklearn.svm import SVC

import ddpm
from ddpm.data import Dataset, from_arrays
from ddpm.data.digits import handwritten
from ddpm.denoiser import NetworkDenoiser
from ddpm.training import TrainConfig, train
from ddpm.training.config import OptimizerSettings
from ddpm.training.text import TextSettings

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARTICLED = tuple(f"{'an' if name == 'eight' else 'a'} {name}" for name in NAMES)
RELATIONS = (("above", "below"), ("left of", "right of"))  # first digit before the second, or after it
PLACES = (((0, 4), (8, 4)), ((4, 0), (4, 8)))  # upper, lower; left, right
SIDE, SCENES, BATCH = 16, 20_000, 32


class Scene(NamedTuple):
    """Layout 0 (upright) or 1 (level), and the digits in order: upper and lower, or left and right."""

    layout: int
    first: int
    second: int

    @property
    def unseen(self) -> bool:
        """Whether no training scene holds this pair."""
        return (self.second - self.first) % 10 == 3

    def caption(self, swapped: bool) -> str:
        """One of the two ways to say it."""
        one, other = (self.second, self.first) if swapped else (self.first, self.second)
        return f"{ARTICLED[one]} {RELATIONS[self.layout][swapped]} {ARTICLED[other]}"


ALL = [Scene(layout, a, b) for layout in (0, 1) for a in range(10) for b in range(10)]


class Digits:
    """The real digits, and who reads them."""

    def __init__(self) -> None:
        x, y = handwritten()
        self.x, self.y = x, y
        support = SVC(C=10.0, gamma=0.002)  # pyright: ignore[reportArgumentType]  (scikit-learn's hint says str)
        self.classifier = support.fit(half_pixel_shifts(x[:SPLIT]), np.tile(y[:SPLIT], 5))

    def pictures(self, scenes: list[Scene], rows: range, seed: int) -> Array:
        """The scenes, (N, 1, 16, 16), of digits among the rows."""
        rng, out = np.random.default_rng(seed), np.zeros((len(scenes), 1, SIDE, SIDE), np.uint8)
        of = [[row for row in rows if self.y[row] == digit] for digit in range(10)]
        for picture, scene in zip(out, scenes, strict=True):
            for (top, left), digit in zip(PLACES[scene.layout], scene[1:], strict=True):
                picture[0, top : top + 8, left : left + 8] = self.x[rng.choice(of[digit])].reshape(8, 8)
        return out

    def read(self, pictures: Array) -> list[Scene]:
        """What is seen in pictures (N, 1, 16, 16): where the ink outside the middle lies, and the digits at both places."""
        x = pictures[:, 0].astype(np.float64)
        upright, level = (x[:, [*range(4), *range(12, 16)]].sum((1, 2)), x[:, :, [*range(4), *range(12, 16)]].sum((1, 2)))
        layouts = (level > upright).astype(int)
        found = np.stack([
            np.stack([self.classifier.predict(x[:, top : top + 8, left : left + 8].reshape(len(x), -1)) for top, left in places], axis=1)
            for places in PLACES
        ])  # fmt: skip
        return [Scene(layout, int(found[layout, i, 0]), int(found[layout, i, 1])) for i, layout in enumerate(layouts.tolist())]


def data_of(digits: Digits) -> Dataset:
    """Training scenes, each told in one of its two ways."""
    rng = np.random.default_rng(0)
    seen = [scene for scene in ALL if not scene.unseen]
    scenes = [seen[i] for i in rng.integers(len(seen), size=SCENES)]
    texts = [scene.caption(bool(swapped)) for scene, swapped in zip(scenes, rng.integers(2, size=SCENES), strict=True)]
    return from_arrays(digits.pictures(scenes, range(SPLIT), 1), {"text": texts}, name="scenes of two digits", bins=(0, 16), holdout=0.02)


def random_t5(folder: Path) -> str:
    """A frozen T5 encoder over bytes with random weights, saved as transformers does."""
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=384, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4, is_encoder_decoder=False)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


def settings(out: str, encoder: str, seed: int, steps: int, threads: int) -> TrainConfig:
    """The recipe."""
    network = ddpm.UNetConfig(channels=32, mults=(1, 2, 2), blocks=1, attention=(1, 2), heads=4, dropout=0.0)
    return TrainConfig(
        steps=steps, batch=BATCH, seed=seed, out=out, threads=threads, network=network, text=TextSettings(encoder=encoder), preview=0,
        optimizer=OptimizerSettings(kind="muon", lr=6e-3, momentum=0.9, warmup=60, decay="linear"), ema=0.1,
        evaluate_every=steps, checkpoint_every=steps, monitor=False,
    )  # fmt: skip


def steps_of(encoder: str, data: Dataset, minutes: float, threads: int) -> int:
    """How many steps the CPU minutes hold."""

    def short(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(settings(f"{folder}/run", encoder, 0, steps, threads), data=data, quiet=True)

    return fitting(short, minutes)


def score(denoiser: NetworkDenoiser, digits: Digits, guidance: float, steps: int, seed: int) -> tuple[dict[str, float], Array, list[str]]:
    """Every prompt, both ways of saying each of the two hundred scenes, drawn once and read."""
    asked = [(scene, scene.caption(swapped)) for scene in ALL for swapped in (False, True)]
    texts = [text for _, text in asked]
    guided = ddpm.ClassifierFree(denoiser, guidance)
    drawn = ddpm.sample(guided, len(asked), steps=steps, seed=seed, cond=ddpm.prompts(denoiser, texts), batch=100).numpy()
    wanted, seen = [scene for scene, _ in asked], digits.read(drawn)
    right = np.array([a == b for a, b in zip(wanted, seen, strict=True)])
    new = np.array([scene.unseen for scene in wanted])
    layout = np.mean([a.layout == b.layout for a, b in zip(wanted, seen, strict=True)])
    digit = np.mean([(a.first == b.first, a.second == b.second) for a, b in zip(wanted, seen, strict=True)])
    blind = np.mean([a == b for a, b in zip(wanted, [*seen[57:], *seen[:57]], strict=True)])
    parts = {"composition": right[~new].mean(), "unseen": right[new].mean(), "layout": layout, "digit": digit, "blind": blind}
    return {name: float(value) for name, value in parts.items()}, drawn, texts


def figure(drawn: Array, texts: list[str], path: Path) -> None:
    """Prompts with what was drawn for them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    chosen = np.random.default_rng(5).choice(len(texts), 24, replace=False)
    shown, axes = plt.subplots(3, 8, figsize=(13, 5.6), constrained_layout=True)
    for axis, i in zip(axes.flat, chosen, strict=True):
        axis.imshow(16 - drawn[i, 0], cmap="gray", vmin=0, vmax=16)
        axis.set_title(texts[i].replace(" of a", " of\na").replace("above a", "above\na").replace("below a", "below\na"), fontsize=8)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=110)
    plt.close(shown)


def main() -> int:
    """Train, draw, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="words", help="words, random-t5, or a folder")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="CPU minutes of training for each seed: sets the steps by what a few take"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps, instead of --minutes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0], help="scales to draw at")
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="folder that keeps the runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    digits = Digits()
    data = data_of(digits)
    other = [ALL[i] for i in np.random.default_rng(3).integers(len(ALL), size=1000)]
    real = digits.read(digits.pictures(other, range(SPLIT, len(digits.y)), 4))
    results: dict[float, list[dict[str, float]]] = {guidance: [] for guidance in args.guidance}
    with tempfile.TemporaryDirectory() as temporary:
        encoder = random_t5(Path(temporary) / "t5") if args.encoder == "random-t5" else args.encoder
        steps = args.steps or steps_of(encoder, data, args.minutes, args.threads)
        for seed in range(args.seeds):
            began = time.process_time()
            out = (args.keep or Path(temporary)) / f"seed-{seed}"
            denoiser = train(settings(str(out), encoder, seed, steps, args.threads), data=data, quiet=True).denoiser
            print(f"seed {seed}: trained in {(time.process_time() - began) / 60.0:.2f} CPU minutes", flush=True)
            for guidance, found in results.items():
                said, drawn, texts = score(denoiser, digits, guidance, args.sample_steps, seed)
                found.append(said)
                print(f"  guidance {guidance:g}: " + "  ".join(f"{key} {value:.3f}" for key, value in said.items()), flush=True)
                if seed == 0 and args.figure and guidance == args.guidance[0]:
                    figure(drawn, texts, args.figure)
    print(f"{steps} steps of {BATCH}, {args.sample_steps} DDIM steps, {torch.get_num_threads()} threads")
    means = {
        f"guidance {guidance:g}": {key: round(float(np.mean([one[key] for one in found])), 4) for key in found[0]}
        for guidance, found in results.items()
    }
    right = float(np.mean([a == b for a, b in zip(other, real, strict=True)]))
    print(json.dumps({"encoder": args.encoder, "steps": steps, "seeds": args.seeds, **means, "real": round(right, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
