"""What an autoencoder is trained for: to give back what it was given, through latents that carry little or are few."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddpm.networks.autoencoder import ConvolutionalAutoencoder
from ddpm.objective.bound import mean_flat

COMMITMENT = 0.25  # beta of van den Oord et al., eq. 3


class AutoencodingLoss(nn.Module):
    """-log p(x|z) + weight KL(q(z|x) || N(0, I)) in nats per entry of x, p Laplacian with one learned scale b: |x - x'|/b + log 2b.

    With weight 1 it is the negative evidence bound, for data that are continuous; a smaller weight keeps more in the latents than the
    bound would. With a codebook the second term is |sg(z) - e|^2 + 0.25 |z - sg(e)|^2, a mean over the latents, weight 1 (sg: no
    gradient), and gradients pass the rounding as if it were not there.

    Reference: Kingma, Welling, 2013, arXiv:1312.6114, eq. 7; Higgins et al., 2017 (the weight, beta); Rybkin et al., 2020,
    arXiv:2006.13202 (the learned scale); van den Oord et al., 2017, arXiv:1711.00937, eq. 3.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.log_scale = weight, nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> float:
        """b, in units of x."""
        return float(self.log_scale.detach().double().exp())

    def forward(self, model: ConvolutionalAutoencoder, x: Tensor, eps: Tensor) -> Tensor:
        """x (B, C, *axes) as encoded, eps (B, latent, *axes / factor) unit normals -> loss (B,)."""
        return self.with_copy(model, x, eps)[0]

    def with_copy(self, model: ConvolutionalAutoencoder, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the copies x' (B, C, *axes)."""
        posterior = model.posterior(x)
        if model.codebook is None:
            z, second = posterior.draw(eps), self.weight * posterior.kl() / x[0].numel()
        else:
            z, near = posterior.mean, model.rounded(posterior.mean)
            second = mean_flat((z.detach() - near) ** 2) + COMMITMENT * mean_flat((z - near.detach()) ** 2)
            z = z + (near - z).detach()
        copy = model.decoder(z)
        error = mean_flat((x - copy).abs())
        return error * (-self.log_scale).exp() + self.log_scale + torch.log(error.new_tensor(2.0)) + second, copy
