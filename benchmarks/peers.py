"""Training runs of the peers, as they come: diffusers' unconditional script, and denoising-diffusion-pytorch's Trainer."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

LEVELS = 1000


class Run(NamedTuple):
    """What is the same for both: the rest is theirs."""

    batch: int
    lr: float
    precision: str
    flip: bool = False
    averaged: bool = True  # else the weights of the last step


def library(name: str) -> Any:
    """A library that only the benchmarks need, or an exit that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"this benchmark compares with {name}: pip install {name.replace('_', '-')} ({error})") from error


class Pictures(Dataset[Tensor]):
    """A folder of pictures as diffusers' script reads it: opened each time and sent through its five transforms."""

    def __init__(self, folder: Path, size: int, mode: str = "L", flip: bool = False) -> None:
        self.paths, self.mode = sorted(folder.glob("*.png")), mode
        ways = library("torchvision.transforms")
        self.transform = ways.Compose(
            [
                ways.Resize(size, interpolation=ways.InterpolationMode.BILINEAR), ways.CenterCrop(size),
                ways.RandomHorizontalFlip() if flip else ways.Lambda(lambda picture: picture),
                ways.ToTensor(), ways.Normalize([0.5], [0.5]),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert(self.mode))


def diffusers_run(model: Any, pictures: Dataset[Tensor], steps: int, run: Run, home: Path | None = None) -> nn.Module:
    """The loop of diffusers' train_unconditional.py: accelerate, its loader, scheduler, AdamW, average and progress bar.

    The model with its averaged weights, or the last. home: a folder where an eighth after another is kept, and gone on from.
    """
    diffusers, accelerate = library("diffusers"), library("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # it remembers the precision of the run before
    accelerator = accelerate.Accelerator(mixed_precision={"fp32": "no", "bf16": "bf16"}[run.precision])
    noiser = diffusers.DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="linear")
    average = diffusers.training_utils.EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=type(model), model_config=model.config
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = diffusers.optimization.get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=100, num_training_steps=steps)
    loader = DataLoader(pictures, batch_size=run.batch, shuffle=True, num_workers=0)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    parts = {"model": model, "optimizer": optimizer, "rate": rate, "average": average}
    begin = _restored(parts, home)
    bar = library("tqdm").tqdm(total=steps, initial=begin, file=io.StringIO())
    for step, clean in zip(range(begin + 1, steps + 1), _again(loader), strict=False):
        noise = torch.randn_like(clean)
        times = torch.randint(0, LEVELS, (len(clean),)).long()
        with accelerator.accumulate(model):
            predicted = model(noiser.add_noise(clean, noise, times), times).sample
            loss = F.mse_loss(predicted.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        bar.update(1)
        bar.set_postfix(loss=loss.detach().item(), lr=rate.get_last_lr()[0])
        if home is not None and (step % eighth(steps) == 0 or step == steps):
            _kept(parts, step, home)
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if run.averaged:
        average.copy_to(model.parameters())
    return model


def eighth(steps: int) -> int:
    """Steps between two checkpoints."""
    return -(-steps // 8)


def _kept(parts: dict[str, Any], step: int, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "step": step, "random": torch.get_rng_state()}, home / "new.pt")
    (home / "new.pt").replace(home / "kept.pt")


def _restored(parts: dict[str, Any], home: Path | None) -> int:
    """The step that was kept, and everything as it was then; 0 where there is nothing."""
    if home is None or not (home / "kept.pt").is_file():
        return 0
    state = torch.load(home / "kept.pt", weights_only=False)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return int(state["step"])


def _again(loader: Any) -> Iterator[Tensor]:
    while True:
        yield from loader


def lucid_run(model: nn.Module, pictures: Path, out: Path, steps: int, size: int, run: Run, keep: bool = False, **how: Any) -> Any:
    """denoising-diffusion-pytorch's Trainer, sampling and scoring put off beyond its end: the averaged model, which samples, or the last.

    keep: an eighth after another is kept in `out`, and gone on from. how: settings of its GaussianDiffusion; by default Ho's, to predict
    the noise at the levels of a linear schedule.
    """
    package = library("denoising_diffusion_pytorch")
    library("accelerate").state.AcceleratorState._reset_state(True)
    settings = {"timesteps": LEVELS, "objective": "pred_noise", "beta_schedule": "linear"} | how
    diffusion = package.GaussianDiffusion(model, image_size=size, **settings)
    trainer = package.Trainer(
        diffusion, str(pictures), train_batch_size=run.batch, train_lr=run.lr, train_num_steps=steps, save_and_sample_every=10 * steps,
        results_folder=str(out), amp=run.precision == "bf16", mixed_precision_type="bf16", calculate_fid=False,
        augment_horizontal_flip=run.flip,
    )  # fmt: skip
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        if not keep:
            trainer.train()
            return trainer.ema.ema_model if run.averaged else diffusion
        if (out / "model-kept.pt").is_file():
            trainer.load("kept")
        while trainer.step < steps:
            trainer.train_num_steps = min(steps, trainer.step + eighth(steps))
            trainer.train()
            trainer.save("new")
            (out / "model-new.pt").replace(out / "model-kept.pt")
    return trainer.ema.ema_model if run.averaged else diffusion
