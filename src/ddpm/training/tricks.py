"""Tricks of the trade, off unless asked for: what the network is shown besides, and what is done to the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting

if TYPE_CHECKING:
    from ddpm.denoiser.card import Card


@dataclass(frozen=True, kw_only=True)
class Tricks:
    """Departures from plain training. What each costs in truth:

    self_condition: none. The network also sees an earlier prediction of x0: in a random half of the passes its own for the same x_t, by one
    more call without gradient, else zeros; `sample` feeds back that of the step before.

    augment: none once the network has learned to tell augmented pictures from others by the condition "augment", which samples are drawn
    without. That takes long; until then turned and moved shapes leak into the samples.

    Reference: self_condition: Chen, Zhang, Hinton, 2022, arXiv:2208.04202, section 3.2 and algorithm 1; augment: Karras et al., 2022,
    arXiv:2206.00364, appendix F.2 (0.12).
    """

    self_condition: bool = setting(False, "the network also sees its own earlier prediction, which costs half a forward pass a step more")
    augment: float = setting(
        0.0,
        "chance of each geometric change of a picture, which the network is told of; 0.12 is usual, for long runs on few pictures",
        low=0.0,
        high=1.0,
    )

    def __post_init__(self) -> None:
        check(self)

    def refusals(self, card: Card) -> list[str]:
        """Why these data cannot be trained on so, one sentence each."""
        problems: list[str] = []
        if self.augment and len(card.shape) != 3:
            problems.append(f"augment: it turns and moves pictures (C, H, W), and these samples have shape {card.shape}; leave it at 0")
        if self.augment and card.image_channels:
            problems.append("augment: these data have an image condition, which may hold labels that cannot be turned; leave it at 0")
        if self.augment and card.mask_channels:
            problems.append("augment: entries of these samples are missing, and a mask is not turned with them; leave it at 0")
        return problems
