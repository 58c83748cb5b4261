"""The loop: take a batch, step, average, and now and then measure, show and save. No formula of diffusion in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddpm.data.dataset import Dataset
from ddpm.denoiser import NetworkDenoiser, Residuals
from ddpm.objective import Loss
from ddpm.random import torch_seed
from ddpm.training.build import describe
from ddpm.training.config import TrainConfig
from ddpm.training.ema import swapped
from ddpm.training.feed import Feed
from ddpm.training.health import Health, cause
from ddpm.training.held_out import gaussian_floor, held_out_loss
from ddpm.training.logbook import Logbook
from ddpm.training.machine import Machine
from ddpm.training.preview import preview
from ddpm.training.state import RunState
from ddpm.training.stop import Stop


@dataclass
class Trainer:
    """One run of one objective on one data set; `fit` goes from the state's step to config.steps, or until `stop` is asked for."""

    config: TrainConfig
    dataset: Dataset
    state: RunState
    machine: Machine
    run: Path
    own_network: str | None = None
    health: Health = field(default_factory=Health)

    def __post_init__(self) -> None:
        config = self.config
        self.keys = frozenset(self.dataset.cond) if config.conditional else frozenset(self.dataset.cond) & {"image"}
        dropout = config.cond_dropout if self.keys else 0.0
        self.feed = Feed(
            self.dataset, self.denoiser.codec, self.keys, config.seed, config.batch, config.accumulate, dropout, self.machine.device
        )
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser being trained."""
        return self.state.denoiser

    @property
    def loss(self) -> Loss:
        """The objective."""
        return self.state.loss

    def step(self, say: Callable[[str], None]) -> torch.Tensor | None:
        """One optimizer step of `accumulate` passes; the mean loss, or None where it was skipped because something was not finite."""
        state, config, step = self.state, self.config, self.state.step
        self.denoiser.train()
        self.loss.train()
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.machine.device)
        for part in range(config.accumulate):
            batch = self.feed.batch(step, part)
            torch.manual_seed(torch_seed(config.seed, "network", step * config.accumulate + part))  # dropout masks
            with torch.autocast(self.machine.device.type, self.machine.autocast, enabled=self.machine.autocast is not None):
                losses = self.loss(self.denoiser, batch.x0, batch.cond, batch.draws)
            loss = losses.mean() / config.accumulate
            (state.scaler.scale(loss) if state.scaler else loss).backward()
            total += loss.detach()
            if not torch.isfinite(loss):
                break
        if state.scaler:
            state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optimizer.grad_clip)
        state.step += 1
        if not bool(torch.isfinite(total + norm)):
            overflow = state.scaler is not None and bool(torch.isfinite(total)) and state.scaler.get_scale() > 1.0
            if state.scaler:
                state.scaler.update()
            if not overflow:  # an overflow of scaled fp16 gradients is routine: the scale comes down
                say(self.health.skip(step + 1, cause(self.denoiser, batch, losses.detach()), self._last_good()))
            state.optimizer.zero_grad(set_to_none=True)
            return None
        for group in state.optimizer.param_groups:
            group["lr"] = config.optimizer.lr_at(step, config.steps)
        if state.scaler:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        state.good_steps += 1
        state.ema.update(self.denoiser, state.good_steps)
        self.health.good()
        return total

    def _last_good(self) -> str:
        saved = sorted(path.name for path in self.run.glob("step-*") if path.is_dir() and path.suffix == "")
        return f"{saved[-1]} is good" if saved else "No checkpoint had been written yet"

    def evaluate(self) -> dict[str, Any]:
        """Held-out loss of the averaged weights, by log-SNR bin, beside what a Gaussian would reach; keeps the residual moments."""
        with swapped(self.denoiser, self.state.ema.weights):
            result = held_out_loss(self.denoiser, self.dataset, self.keys, autocast=self.machine.autocast)
        if result is None:
            return {}
        if len(result.residual) > 1 and bool(result.residual.isfinite().all()):
            self.denoiser.residuals = Residuals(tuple(result.log_snr.tolist()), tuple(result.residual.tolist()))
        scale = self.denoiser.codec.scale
        variances = tuple((std / unit) ** 2 for std, unit in zip(self.dataset.card.std, scale, strict=True))
        floor = gaussian_floor(self.denoiser.process, variances)
        return {
            "held_out_loss": result.loss,
            "gaussian_loss": floor,
            **{f"held_out_loss/log_snr {name}": value for name, value in result.bins.items()},
        }

    def save(self, say: Callable[[str], None]) -> None:
        """Commit a checkpoint of the present step."""
        document = describe(self.denoiser, self.config, self.dataset.card, self.own_network)
        self.state.save(self.run, self.config, document, self.config.keep, say)

    def fit(self, log: Logbook, stop: Stop) -> None:
        """Train to config.steps; on a stop request save first. Raises NonFiniteError after ten skipped steps in a row."""
        config, state = self.config, self.state
        window: list[torch.Tensor] = []
        shown: float | None = None
        while state.step < config.steps and not stop.asked:
            loss = self.step(log.say)
            if loss is not None:
                window.append(loss)
            done, last = state.step, state.step == config.steps
            if window and (done % config.log_every == 0 or last):
                shown = torch.stack(window).mean().item()
                log.write(
                    done,
                    {"loss": shown, "lr": config.optimizer.lr_at(done - 1, config.steps), "steps_per_second": round(log.rate(done), 3)},
                )
                window.clear()
            saving = done % config.checkpoint_every == 0 or last
            if state.good_steps and (done % config.evaluate_every == 0 or saving):
                log.write(done, self.evaluate())
            if saving:
                self.save(log.say)
                if config.preview and state.good_steps:
                    preview(self, last=last)
            log.progress(done, shown)
        if stop.asked and state.step < config.steps:
            self.save(log.say)
