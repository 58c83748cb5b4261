"""Samples on the way and at the end, the loss curve and the model card: what a person looks at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm.data.export import as_pictures, grid, save_npz, save_picture
from ddpm.denoiser import Card, Codec
from ddpm.sampling import sample, usual_steps
from ddpm.training.averaging.ema import swapped
from ddpm.training.checkpoints.storage import write_text
from ddpm.training.feed import asked_for
from ddpm.training.logbook import read_metrics

if TYPE_CHECKING:
    from ddpm.training.config import TrainConfig
    from ddpm.training.trainer import Trainer

PREVIEW_STEPS = 50


def limits(codec: Codec) -> tuple[float, float]:
    """What is shown as black and as white."""
    if codec.bins is not None:
        return codec.bins
    return min(codec.low or (-1.0,)), max(codec.high or (1.0,))


def example_conditions(trainer: Trainer, count: int) -> dict[str, Tensor] | None:
    """Conditions for a preview: classes in turn, else those of the first held-out (or training) samples."""
    rows = trainer.dataset.held_rows if len(trainer.dataset.held_rows) else trainer.dataset.train_rows
    device = trainer.machine.device
    cond = asked_for(trainer.dataset, np.resize(rows, count), trainer.keys, device)
    if cond and "class" in cond:
        cond["class"] = torch.arange(count, device=device) % len(trainer.dataset.card.classes)
    return cond


def preview(trainer: Trainer, *, last: bool) -> np.ndarray:
    """Draw a few samples with the averaged weights into samples/; a picture where they can be seen, `.npz` otherwise. Returns them.

    Always from seed 0. Every rank draws its share, the main one writes.
    """
    denoiser, config, world = trainer.denoiser, trainer.config, trainer.world
    classes = len(trainer.dataset.card.classes) if "class" in trainer.keys else 0
    count = max(config.preview, 10 * classes if last and classes <= 20 else 0)
    steps = usual_steps(denoiser, PREVIEW_STEPS)
    share = -(-count // world.size)  # the same for every rank, so that all make as many network calls
    first = world.rank * share
    cond = example_conditions(trainer, share * world.size)
    own = {key: value[first : first + share] for key, value in cond.items()} if cond else None
    with swapped(denoiser, trainer.state.ema.weights):
        part = sample(denoiser, share, steps=steps, first=first, cond=own, autocast=trainer.machine.autocast).cpu().numpy()
    drawn = np.concatenate(world.gather(part))[:count]
    world.on_main(lambda: _show(trainer, drawn, classes))
    return drawn


def _show(trainer: Trainer, drawn: np.ndarray, classes: int) -> None:
    count = len(drawn)
    path = trainer.run / "samples" / f"step-{trainer.state.step:07d}"
    pictures = as_pictures(drawn)
    if pictures is None:
        save_npz(drawn, None, path.with_suffix(".npz"))
    else:
        columns = classes if 1 < classes <= 20 and count >= classes else None
        save_picture(grid(pictures, limits(trainer.denoiser.codec), columns=columns), path.with_suffix(".png"))


def loss_figure(run: Path) -> Path | None:
    """loss.png from metrics.jsonl; None where matplotlib is not installed or nothing was logged."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    rows = read_metrics(run)
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held = [(row["step"], row["held_out_loss"], row.get("gaussian_loss")) for row in rows if "held_out_loss" in row]
    if not train:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    alone = "o" if len(train) == 1 else ""  # a line of one point would not be seen
    axes.plot(*zip(*train, strict=True), color="C0", alpha=0.7, marker=alone, label="training loss")
    if held:
        steps, losses, floors = zip(*held, strict=True)
        what = "|eps - eps_hat|^2" if floors[0] is not None else "objective"
        axes.plot(steps, losses, "o-", color="C1", markersize=3, label=f"held-out {what}, averaged weights")
        if floors[0] is not None:
            axes.plot(steps, floors, "--", color="grey", marker="_" if len(steps) == 1 else "", label="best a Gaussian can do")
    positive = min(value for _, value in train) > 0 and all(value > 0 for _, value, _ in held)
    axes.set(xlabel="step", ylabel="loss per entry", yscale="log" if positive else "linear")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    path = run / "loss.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


CARD = """---
library_name: ddpm
tags: [diffusion, denoising-diffusion-probabilistic-model]
---

# {name}

A denoising diffusion model of {what}, trained for {steps} steps of {images} samples.
{picture}
| | |
|---|---|
| data | {data}: {count} samples {shape}, {held} held out; fingerprint `{fingerprint}` |
| schedule, prediction, loss | {schedule}, {prediction}, {loss} |
{told}{distilled}| network | {network}, {parameters:,} parameters |
| seed, precision, device | {seed}, {precision}, {device} |
| held-out loss | {score} |

## Use

```
ddpm sample {run} --n 64
```

```python
import ddpm

denoiser = ddpm.load("{run}")
samples = ddpm.sample(denoiser, 64)  # in the data's own units, {dtype} {shape}
```

## Cite

Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239.
"""


def model_card(trainer: Trainer) -> Path:
    """README.md of the run folder: data, settings, scores, how to load, how to cite."""
    config: TrainConfig = trainer.config
    card: Card = trainer.dataset.card
    scores = [row for row in read_metrics(trainer.run) if "held_out_loss" in row]
    score = "nothing was held out"
    if scores:
        floor = scores[-1].get("gaussian_loss")
        beside = "of its own objective" if floor is None else f"(a Gaussian reaches {floor:.4f})"
        score = f"{scores[-1]['held_out_loss']:.4f} {beside}"
    pictures = sorted((trainer.run / "samples").glob("step-*"))
    student = trainer.denoiser.student
    distilled = ""
    if student is not None:
        walk = f"drawn in {len(student.times)} steps" if student.times else "drawn in any number of steps"
        distilled = f"| distilled from | {getattr(config.loss, 'teacher', '')}, by {student.method}; {walk} |\n"
    about = trainer.denoiser.text
    facts = {
        "told": "" if about is None else f"| told by | {about.title} (docs/text.md of ddpm) |\n",
        "name": trainer.run.name,
        "what": card.name,
        "steps": trainer.state.step,
        "images": config.batch * config.accumulate,
        "picture": f"\n![samples](samples/{pictures[-1].name})\n" if pictures else "",
        "data": card.name,
        "count": card.count,
        "shape": card.shape,
        "held": card.held_out,
        "fingerprint": card.fingerprint[:12],
        "schedule": type(config.schedule).__name__,
        "prediction": type(config.parameterization).__name__,
        "loss": type(config.loss).__name__,
        "distilled": distilled,
        "network": trainer.own_network or type(config.network).__name__,
        "parameters": sum(p.numel() for p in trainer.denoiser.parameters()),
        "seed": config.seed,
        "precision": trainer.machine.precision,
        "device": trainer.machine.device,
        "score": score,
        "run": trainer.run,
        "dtype": card.dtype,
    }
    text = CARD.format(**facts)
    path = trainer.run / "README.md"
    write_text(path, text)
    return path
