"""A variational autoencoder of handwritten digits.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014). A pixel is a Bernoulli variable whose probability is its
brightness, the posterior is a diagonal Gaussian, and the prior is a standard normal distribution.
B: batch, C: channels (1), H, W: height and width (8), P: pixels (64), F: hidden units, Z: latent variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Adam

from jobs.specs.training_options.recipe_options import VaeOptions, read_options
from worker.training.modules.recipes.digits import SIDE, load_digits, write_grid
from worker.training.modules.user_module import Parts, Phase, Setup

_NUM_SAMPLES = 64


class Vae(nn.Module):
    """An encoder and a decoder of one hidden layer each."""

    def __init__(self, *, latent: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, SIDE**2))

    def encode(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the posterior's mean and log variance, both (B, Z), in float32."""
        mean_BZ, log_variance_BZ = self.encoder(images_BCHW).float().chunk(2, dim=1)
        return mean_BZ, log_variance_BZ

    def decode(self, latents_BZ: torch.Tensor) -> torch.Tensor:
        """Compute logits of the pixels' brightness, (B, 1, 8, 8), in float32."""
        logits_BP: torch.Tensor = self.decoder(latents_BZ).float()
        return logits_BP.reshape(-1, 1, SIDE, SIDE)


def build(setup: Setup) -> Parts:
    """Build the recipe; see `VaeOptions`.

    Raises:
        ValueError: An option is invalid.
        InvalidSpec: scikit-learn is not installed.
    """
    options = read_options(VaeOptions, setup.options)
    train, held_out = load_digits("vae")
    model = Vae(latent=options.latent, hidden=options.hidden)

    def bound(batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images_BCHW, _ = batch
        mean_BZ, log_variance_BZ = model.encode(images_BCHW)
        latents_BZ = mean_BZ + (log_variance_BZ / 2).exp() * torch.randn_like(mean_BZ)
        logits_BCHW = model.decode(latents_BZ)
        fit_BCHW = functional.binary_cross_entropy_with_logits(logits_BCHW, images_BCHW, reduction="none")
        reconstruction = fit_BCHW.flatten(1).sum(dim=1).mean()
        kl = (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(dim=1).mean() / 2
        return reconstruction + kl, {"reconstruction": reconstruction, "kl": kl}

    def evaluate(batch: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        negative_elbo, parts = bound(batch)
        return {"loss": negative_elbo, **parts}

    def finish(folder: Path) -> None:
        noise_BZ = torch.randn((_NUM_SAMPLES, options.latent), generator=torch.Generator().manual_seed(setup.seed))
        with torch.no_grad():
            write_grid(folder / "samples.png", model.decode(noise_BZ.to(setup.device)).sigmoid())

    return Parts(
        models={"model": model},
        phases=[Phase(optimizer=Adam(model.parameters(), lr=options.learning_rate), loss=bound)],
        train=train,
        eval_data=held_out,
        evaluate=evaluate,
        finish=finish,
        facts=[
            "Generates handwritten digits like those of scikit-learn's load_digits (samples.png).",
            "A fixed fifth of them was held out.",
            "Its loss is the negative evidence lower bound of an image, in nats.",
        ],
    )
