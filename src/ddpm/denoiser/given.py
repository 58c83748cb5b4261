"""What a sample is drawn from: a condition image that is made of the sample itself in training, and given by a person afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting

if TYPE_CHECKING:
    import torch

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as pictures are made grey everywhere


@dataclass(frozen=True, kw_only=True)
class Given(ABC):
    """A linear map of x0 in the space diffused in, (B, C, *axes) -> (B, channels, *axes), which averages: constants stay what they are."""

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def channels(self, shape: tuple[int, ...]) -> int:
        """Channels of the condition image of samples (C, *axes)."""

    @abstractmethod
    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why samples of this shape cannot be drawn so; None where they can."""

    @abstractmethod
    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """The condition image of samples."""

    def widened(self, small: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        """The condition image from what a person may hold instead of a whole sample; None where it is nothing of the kind."""
        return None


@dataclass(frozen=True, kw_only=True)
class Small(Given):
    """Super-resolution: the mean of every block of `factor` entries along each axis, repeated over the block.

    Reference: Saharia et al., 2021, arXiv:2104.07636 (the low resolution concatenated to the input; there enlarged bicubically).
    """

    factor: int = setting(4, "how many times shorter each axis of what is given is", low=2, high=4096)

    def channels(self, shape: tuple[int, ...]) -> int:
        """As many as the sample has."""
        return shape[0]

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Tables, and axes that are no multiple of the factor."""
        if len(shape) < 2 or any(size % self.factor for size in shape[1:]):
            return f"given.factor: got {self.factor}; samples of shape {shape} need axes that are multiples of it"
        return None

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """(B, C, *axes) -> the same shape, constant in every block."""
        from ddpm.denoiser.cascade import enlarged

        split = [part for size in x0.shape[2:] for part in (size // self.factor, self.factor)]
        small = x0.reshape(*x0.shape[:2], *split).mean(dim=tuple(range(3, 3 + 2 * (x0.ndim - 2), 2)))
        return enlarged(small, tuple(x0.shape[1:]))

    def widened(self, small: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        """(B, C, *small axes), each entry repeated."""
        from ddpm.denoiser.cascade import enlarged

        fits = tuple(small.shape[1:]) == (shape[0], *(size // self.factor for size in shape[1:]))
        return enlarged(small, shape) if fits else None


@dataclass(frozen=True, kw_only=True)
class Grey(Given):
    """Colourisation: the luminance 0.299 R + 0.587 G + 0.114 B.

    Reference: Saharia et al., 2022, arXiv:2111.05826, section 3 (colourisation as image-to-image diffusion).
    """

    def channels(self, shape: tuple[int, ...]) -> int:
        """One."""
        return 1

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """All but pictures of three channels."""
        return None if len(shape) == 3 and shape[0] == 3 else f"given: grey is of pictures (3, H, W), these samples have shape {shape}"

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 1, H, W)."""
        import torch

        return torch.einsum("bchw,c->bhw", x0, torch.tensor(LUMA, dtype=x0.dtype, device=x0.device))[:, None]


GIVENS = (Small, Grey)
