"""`--from` and `--strength`: sampling that begins at a perturbed picture instead of at noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting
from ddpm.errors import ConfigError
from ddpm.process import Below, Grid

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import NetworkDenoiser

STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Starting:
    """Where sampling begins. Reference: Meng et al., 2022, arXiv:2108.01073, algorithm 1."""

    source: str | None = setting(
        None, "start from this picture, or row of data (digits:900, samples.npz:3), instead of from noise", flag="from", group="what"
    )
    strength: float | None = setting(
        None,
        f"with --from, the t it is perturbed to: small keeps more of it, 1 keeps nothing; none: {STRENGTH}",
        above=0.0,
        high=1.0,
        group="what",
    )

    def __post_init__(self) -> None:
        alone = self.strength is not None and self.source is None
        check(self, ["strength: says how much of a picture is kept; name the picture with --from"] if alone else [])

    def grid(self, grid: Grid | None) -> Grid | None:
        """The grid below the strength, or the grid as it is where nothing is varied."""
        return grid if self.source is None else Below(base=grid, begin=self.begin)

    @property
    def begin(self) -> float:
        """The t where sampling begins."""
        return 1.0 if self.source is None else (STRENGTH if self.strength is None else self.strength)

    def knots(self, length: int | None) -> int | None:
        """How many steps a chain of this length has below the strength."""
        return None if length is None else max(1, round(self.begin * length))

    def told(self, cond: dict[str, torch.Tensor] | None, classes: tuple[str, ...] | None, dropout: float) -> dict[str, torch.Tensor] | None:
        """The condition without a class where a picture is varied and no class was named: the picture says what it is.

        A model that was never trained without a class (dropout 0) keeps the classes in turn.
        """
        if self.source is None or classes is not None or dropout == 0.0 or not cond:
            return cond
        return {key: value for key, value in cond.items() if key != "class"} or None

    def tensor(self, model: NetworkDenoiser, n: int, steps: int, grid: Grid | None, seed: int) -> torch.Tensor | None:
        """n perturbed copies (n, *D), sample i's noise from (seed, i), at the first instant of `grid`; None where nothing is varied.

        Raises:
            DataError: a picture that cannot be read or does not fit the model.
            ConfigError: more steps than the chain has below the strength.
        """
        if self.source is None or grid is None:
            return None
        from ddpm.sampling import perturbed

        refuse_cascades(self.source, model, "variations of the smaller sample come from the smaller model")
        x0 = encoded(self.source, model)
        return perturbed(model, x0.expand(n, *x0.shape), grid, steps, seed)


def encoded(text: str, model: NetworkDenoiser) -> torch.Tensor:
    """The sample that `text` names (`ddpm.data.single_sample.read_one`), (*D) in the space the model diffuses in, float32 on its device."""
    import torch

    from ddpm.data.single_sample import read_one

    raw = torch.from_numpy(read_one(text, model.data_shape, model.codec))
    return model.codec.encode(raw[None])[0].to(torch.float32).to(next(model.parameters()).device)


def refuse_cascades(run_folder: str, model: NetworkDenoiser, why: str) -> None:
    """ConfigError for a stage of a cascade, which enlarges what another model drew."""
    if model.base is not None:
        raise ConfigError(f"{run_folder}: enlarges the samples of a smaller model; {why}")


def refuse_image_models(run_folder: str, channels: int) -> None:
    """ConfigError for models that need a condition image beside each sample, for commands that take none."""
    if channels:
        raise ConfigError(
            f"{run_folder}: this model needs a condition image of {channels} channels beside each sample, which this command does not "
            'take; use ddpm sample --given, or Python: ddpm.sample(denoiser, n, cond={"image": images})'
        )
