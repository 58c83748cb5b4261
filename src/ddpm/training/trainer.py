"""The loop: take a batch, step, average, and now and then measure, show and save. No formula of diffusion in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpm.data.dataset import Dataset
from ddpm.denoiser import NetworkDenoiser, Residuals
from ddpm.errors import DataError
from ddpm.networks.blocks import uncompiled
from ddpm.objective import Loss
from ddpm.random import torch_seed
from ddpm.training.averaging.ema import swapped
from ddpm.training.averaging.snapshots import save_snapshot
from ddpm.training.build import describe
from ddpm.training.config import TrainConfig
from ddpm.training.distributed.parallel import Gradients, Pass, clip, is_sharded
from ddpm.training.distributed.world import World
from ddpm.training.feed import Batch, Feed
from ddpm.training.health.condition_use import condition_use
from ddpm.training.health.monitor import Monitor, bin_gradients
from ddpm.training.health.non_finite import EVERYWHERE, OVERFLOW, Health, cause
from ddpm.training.health.spikes import roll_back
from ddpm.training.held_out import gaussian_floor, gaussian_floors, held_out_loss, held_out_objective
from ddpm.training.leftovers import last_checkpoint
from ddpm.training.logbook import Logbook, Unlogged
from ddpm.training.machine import Machine, executed
from ddpm.training.prefetch import Key, Prefetch, choose_ahead
from ddpm.training.preview import preview
from ddpm.training.state import RunState
from ddpm.training.stop import Stop


def _added(held: list[torch.Tensor | None], more: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Sums of gradients, where either may be missing."""
    if not held:
        return more
    return [a if b is None else b if a is None else a.add_(b) for a, b in zip(held, more, strict=True)]


@dataclass
class Trainer:
    """One run of one objective on one data set; `fit` goes from the state's step to config.steps, or until `stop` is asked for.

    Of many processes each runs its own Trainer on its share of the logical shards; all take every step, and every decision, together.
    """

    config: TrainConfig
    dataset: Dataset
    state: RunState
    machine: Machine
    run: Path
    own_network: str | None = None
    health: Health = field(default_factory=Health)
    world: World = field(default_factory=World)
    shards: int = 1

    def __post_init__(self) -> None:
        config = self.config
        self.keys = self.denoiser.conditions
        dropout = config.cond_dropout if self.keys else 0.0
        self.feed = Feed(
            self.dataset, self.denoiser.codec, self.keys, config.seed, config.batch, config.accumulate, dropout, self.machine.device,
            self.shards, config.tricks,
        )  # fmt: skip
        host = self.feed if self.machine.device.type == "cpu" else self.feed.on(torch.device("cpu"))
        ahead = choose_ahead(self.dataset, self.machine.device, config.prefetch, config.workers)
        self.batches = Prefetch(lambda *key: host.drawn(*key), self._following, ahead, self.machine.device)
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        self.gradients = Gradients(self.denoiser, self.loss, self.world, own=self.own_network is not None)
        self.stop = Stop()  # nobody asks, until `fit` is told whom to listen to
        self.monitor = Monitor(max(2 * config.optimizer.warmup, config.steps // 2))
        self.norm = torch.zeros(())  # of the last step's gradient
        self.asked = torch.zeros(())  # on how many ranks a stop had been asked for when the last step was taken

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
        drawn = step + state.skipped
        for module in (self.denoiser, self.loss):
            if not module.training:  # it walks through all parts
                module.train()
        state.optimizer.zero_grad(set_to_none=True)
        self.loss.advance(step / config.steps)
        found = self._passes(drawn)
        if state.scaler:
            state.scaler.unscale_(state.optimizer)
        norm = self.norm = clip(self.parameters, config.optimizer.grad_clip, self.world)
        own = sum((losses.sum() for _, _, losses in found), start=torch.zeros((), device=self.machine.device))
        total, self.asked = self.world.sum(torch.stack([own, torch.full_like(own, float(self.stop.asked))]))
        total = total / (config.batch * config.accumulate)
        observed = self.loss.take()
        state.step += 1
        if not bool(torch.isfinite(total + norm)):
            overflow = state.scaler is not None and bool(torch.isfinite(total)) and state.scaler.get_scale() > 1.0
            if state.scaler:
                state.scaler.update()
            if not overflow:  # an overflow of scaled fp16 gradients is routine: the scale comes down
                with uncompiled(self.denoiser.network):
                    where = self._cause(drawn, found)
                say(self.health.skip(step + 1, where, last_checkpoint(self.run)))
            state.optimizer.zero_grad(set_to_none=True)
            return None
        if observed:
            self.loss.settle([pair for rank in self.world.gather(observed) for pair in rank])
        for group in state.optimizer.param_groups:
            group["lr"] = config.optimizer.lr_at(step, config.steps) * group.get("lr_scale", 1.0)
        if state.scaler:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        state.good_steps += 1
        for average in state.averages:
            average.update(self.denoiser, state.good_steps)
        self.health.good()
        return total

    def _following(self, key: Key) -> Key | None:
        """The (step, pass, shard) that `_passes` asks for after this one; None after the last step."""
        (step, part, shard), mine = key, self.world.mine(self.shards)
        if part + 1 < self.config.accumulate:
            return step, part + 1, shard
        if shard != mine[-1]:
            return step, 0, shard + 1
        return (step + 1, 0, mine[0]) if step + 1 < self.config.steps + self.state.skipped else None

    def _passes(self, step: int) -> list[tuple[int, int, torch.Tensor]]:
        """Forward and backward of this rank's shards; (pass, shard, losses (B,)) of each. The gradients end as the mean over all shards.

        Where one process has several shards, each shard's sum over its passes is made first and then added, as it would be on as many
        processes: with two shards the result is the same to the last bit.
        """
        config, world, scaler = self.config, self.world, self.state.scaler
        found: list[tuple[int, int, torch.Tensor]] = []
        mine, apart = world.mine(self.shards), world.size == 1 and config.accumulate > 1
        held: list[torch.Tensor | None] = []
        for shard in mine:
            for part in range(config.accumulate):
                batch = self.feed.augmented(self.batches(step, part, shard))
                last = shard == mine[-1] and part == config.accumulate - 1
                with self.gradients.share(last):
                    losses = self._losses(batch, step, part, shard, self.gradients.passes)
                    # DDP and FSDP take the mean over ranks: the share of a pass counts as often
                    loss = losses.mean() * (world.size * len(losses) / config.batch) / config.accumulate
                    (scaler.scale(loss) if scaler else loss).backward()
                found.append((part, shard, losses.detach()))
            if apart and shard != mine[-1]:
                held = _added(held, [parameter.grad for parameter in self.parameters])
                self.state.optimizer.zero_grad(set_to_none=True)
        self.gradients.meet()
        if held:
            for parameter, gradient in zip(self.parameters, _added(held, [p.grad for p in self.parameters]), strict=True):
                parameter.grad = gradient
        return found

    def _losses(self, batch: Batch, step: int, part: int, shard: int, passes: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The losses (B,) of one pass; the same again whenever it is run again."""
        stream = (step * self.config.accumulate + part) * self.shards + shard
        torch.manual_seed(torch_seed(self.config.seed, "network", stream))  # dropout masks
        with torch.autocast(self.machine.device.type, self.machine.autocast, enabled=self.machine.autocast is not None):
            return passes(batch.x0, batch.cond, batch.draws, batch.again)

    def _cause(self, step: int, found: Sequence[tuple[int, int, torch.Tensor]]) -> str:
        """Where the first number of this step that is not finite came from, on whichever rank that was."""
        bad = [one for one in found if not bool(one[2].isfinite().all())]
        sharded, where = is_sharded(self.denoiser), None
        for part, shard, losses in (bad or found)[: 1 if bad or sharded else None]:  # of sharded weights all ranks run one pass
            batch = self.feed.batch(step, part, shard)
            again = partial(self._losses, batch, step, part, shard, Pass(self.denoiser, self.loss))
            where = cause(self.denoiser, batch, losses, self.dataset, again, whole=not sharded)
            self.loss.take()  # seen before
            if where:
                break
        told = self.world.gather(where)
        first = next((rank for rank, text in enumerate(told) if text), None)
        if first is None:
            return OVERFLOW
        return f"{told[first]}{f' on rank {first}' if self.world.size > 1 and not str(told[first]).startswith(EVERYWHERE) else ''}"

    def evaluate(self, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Held-out loss of the averaged weights, by log-SNR bin, beside what a Gaussian would reach, and each bin's gradient; keeps the
        residual moments. What looks wrong is said.
        """
        if self.denoiser.meaning != "mean":
            return self._scored_by_objective()
        with swapped(self.denoiser, self.state.ema.weights):
            result = held_out_loss(self.denoiser, self.dataset, self.keys, autocast=self.machine.autocast, world=self.world)
        if result is None:
            return {}
        self.state.scored(result.loss, self.dataset.card)
        if len(result.residual) > 1 and bool(result.residual.isfinite().all()):
            self.denoiser.residuals = Residuals(tuple(result.log_snr.tolist()), tuple(result.residual.tolist()))
        scale = self.denoiser.codec.scale
        variances = tuple((std / unit) ** 2 for std, unit in zip(self.dataset.card.std, scale, strict=True))
        floors = gaussian_floors(self.denoiser.process, variances, result.t)
        norms: dict[str, float] = {}
        if self.config.monitor and not is_sharded(self.denoiser):
            norms = bin_gradients(self.denoiser, self.loss, self.feed, self.parameters, self.machine.autocast, self.world)
        lines = [*self.monitor.losses(self.state.step, result.bins, floors), *self.monitor.gradients(self.state.step, norms)]
        found = None
        if self.config.monitor:
            with swapped(self.denoiser, self.state.ema.weights):
                found = condition_use(
                    self.denoiser, self.dataset, self.keys, own=result, autocast=self.machine.autocast, world=self.world,
                    hidden=self.config.network is None and self.config.cond_dropout > 0.0,  # a person's own network may not read "null"
                )  # fmt: skip
            lines += self.monitor.condition_used(self.state.step, found)
        for line in lines:
            say(line)
        return {
            "held_out_loss": result.loss,
            "gaussian_loss": gaussian_floor(self.denoiser.process, variances),
            **{f"held_out_loss/log_snr {name}": value for name, value in result.bins.items()},
            **{f"gaussian_loss/log_snr {name}": value for name, value in floors.items()},
            **{f"loss_ratio/log_snr {name}": round(value / floors[name], 4) for name, value in result.bins.items() if floors[name] > 0},
            **{f"gradient_norm/log_snr {name}": value for name, value in norms.items()},
            **(found.logged() if found else {}),
        }

    def _scored_by_objective(self) -> dict[str, Any]:
        """The held-out loss of a student, which predicts no mean: the mean of its own objective as it is at the end, always with the same
        noise. It scores no checkpoint: that of some methods does not fall as their samples improve.
        """
        self.loss.advance(1.0)
        with swapped(self.denoiser, self.state.ema.weights):
            loss = held_out_objective(self.denoiser, self.loss, self.feed, self.machine.autocast)
        return {} if loss is None else {"held_out_loss": loss}

    def preview(self, log: Logbook | Unlogged, *, last: bool) -> None:
        """Draw a few samples, and compare them with the data."""
        drawn, step = preview(self, last=last), self.state.step
        log.picture(step, self.run / "samples" / f"step-{step:07d}.png")
        if self.config.monitor and self.denoiser.autoencoder is None:  # the data are latents, what is drawn is not
            classes = len(self.dataset.card.classes) if "class" in self.keys else 0
            values, lines = self.world.on_main(lambda: self.monitor.samples(step, drawn, self.dataset, classes))
            if values:
                log.write(step, values)
            for line in lines:
                log.say(line)

    def save(self, say: Callable[[str], None]) -> None:
        """Commit a checkpoint of the present step."""
        document = describe(self.denoiser, self.config, self.dataset.card, self.own_network)
        self.state.save(self.run, self.config, document, self.config.keep, say, self.world)

    def without_data(self, error: DataError, say: Callable[[str], None]) -> DataError:
        """What to raise where data cannot be read any more: a step cut short has changed nothing, so the steps done are saved first.

        Of many ranks the others are still in the step and cannot save with this one; there the last checkpoint is what is left.
        """
        step, folder = self.state.step, self.run / f"step-{self.state.step:07d}"
        left = last_checkpoint(self.run)
        if self.world.size == 1 and (step or self.state.good_steps):
            if not folder.is_dir():
                self.save(say)
            left = f"step {step} is saved"
        return DataError(f"{error}\n  in step {step + 1}; {left}. Put the data back and give the same command again")

    def halted(self) -> bool:
        """Whether a stop was asked for, on any rank; all ranks give the same answer at the same step."""
        return self.stop.asked if self.world.size == 1 else bool(self.asked)

    def fit(self, log: Logbook | Unlogged, stop: Stop) -> None:
        """Train to config.steps; on a stop request save first. Raises NonFiniteError after ten skipped steps in a row."""
        config, network = self.config, self.denoiser.network
        with self.batches, executed(network, config.compile, self.machine.device, checkpointing=config.gradient_checkpointing):
            self._fit(log, stop)

    def _fit(self, log: Logbook | Unlogged, stop: Stop) -> None:
        config, state, self.stop = self.config, self.state, stop
        window: list[torch.Tensor] = []
        shown: float | None = None
        while state.step < config.steps and not self.halted():
            self.world.beat(state.step)
            loss = self.step(log.say)
            if loss is not None:
                if config.rollback and state.spikes.lasting(float(loss), state.step) and roll_back(self, log):
                    window.clear()
                    continue
                window.append(torch.stack([loss, self.norm.to(loss)]))
            done, last = state.step, state.step == config.steps
            if window and (done % config.log_every == 0 or last):
                shown, norm = torch.stack(window).mean(0).tolist()
                rates = log.throughput(done, config.batch * config.accumulate, self.machine.device.type)
                log.write(done, {"loss": shown, "gradient_norm": norm, "lr": config.optimizer.lr_at(done - 1, config.steps), **rates})
                window.clear()
            if config.snapshots and done % config.snapshots == 0 and state.good_steps:  # before the checkpoint: a resume finds it
                save_snapshot(self.run, done, state.good_steps, state.averages, log.say, self.world, parts=config.sharded_save)
            saving = done % config.checkpoint_every == 0 or last
            if state.good_steps and (done % config.evaluate_every == 0 or saving):
                with uncompiled(self.denoiser.network):
                    log.write(done, self.evaluate(log.say))
            if saving:
                self.save(log.say)
                if config.preview and state.good_steps:
                    with uncompiled(self.denoiser.network):
                        self.preview(log, last=last)
            log.progress(done, shown)
        if self.halted():
            stop.code = max(self.world.gather(stop.code))
            if state.step < config.steps:
                self.save(log.say)
