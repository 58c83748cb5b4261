"""What makes an autoencoder's copies sharp: a critic that learns to tell them from originals, and features of its own to compare by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.networks.discriminator import PatchDiscriminator


class Critic(nn.Module):
    """Two terms for the autoencoder, and a loss of its own: the perceptual distance sum_l |D_l(x) - D_l(x')|, means over features, and the
    adversarial -mean D(x'); D itself minimises (mean (1 - D(x))+ + mean (1 + D(x'))+)/2.

    perceptual, adversarial: weights. The adversarial one is multiplied by |grad of the rest|/|grad of the term|, by the decoder's last
    weight, so that 1 means as strong as the rest. Everything it knows it learns from the data; no other network's weights are needed.

    Reference: Larsen et al., 2016, arXiv:1512.09300, eq. 6 (features of the discriminator as the metric); Lim, Ye, 2017, arXiv:1705.02894
    (hinge); Esser et al., 2021, arXiv:2012.09841, eq. 7 (the adaptive weight).
    """

    def __init__(self, shape: tuple[int, ...], perceptual: float, adversarial: float) -> None:
        super().__init__()
        self.network = PatchDiscriminator(shape)
        self.perceptual, self.adversarial = perceptual, adversarial

    def terms(self, x: Tensor, copy: Tensor, rest: Tensor, last: Tensor) -> Tensor:
        """What is added to `rest`, (): x (B, C, *axes) originals, copy of theirs, last: the decoder's last weight."""
        said, features = self.network(copy)
        total = rest.new_zeros(())
        if self.perceptual:
            with torch.no_grad():
                wanted = self.network(x)[1]
            total = total + self.perceptual * sum(((a - b).abs().mean() for a, b in zip(features, wanted, strict=True)), start=total)
        if self.adversarial:
            fooling = -said.mean()
            total = total + self.adversarial * strength(rest + total, fooling, last) * fooling
        return total

    def own(self, x: Tensor, copy: Tensor) -> Tensor:
        """The loss (B,) of the network itself, which learns nothing for the autoencoder's sake."""
        real, made = (self.network(one.detach())[0] for one in (x, copy))
        return 0.5 * (F.relu(1.0 - real) + F.relu(1.0 + made)).flatten(1).mean(1)


def strength(rest: Tensor, term: Tensor, weight: Tensor) -> Tensor:
    """|d rest/d weight| / |d term/d weight|, (), without a gradient; at most 10,000."""
    sizes = [torch.autograd.grad(loss, [weight], retain_graph=True)[0].square().sum().sqrt() for loss in (rest, term)]
    return (sizes[0] / (sizes[1] + 1e-4)).clamp(max=1e4).detach()
