"""A generative adversarial network of handwritten digits: two models, two optimizers, two phases in a step.

Goodfellow et al., "Generative Adversarial Networks" (2014), with the generator's non-saturating loss of its section 3,
one-sided smoothing of labels after Salimans et al., "Improved Techniques for Training GANs" (2016), and batch
normalisation and optimizer after Radford et al., "Unsupervised Representation Learning with DCGANs" (2016).
B: batch, C: channels (1), H, W: height and width (8), P: pixels (64), Z: noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Adam

from jobs.specs.training_options.recipe_options import GanOptions, read_options
from worker.training.modules.recipes.digits import SIDE, load_digits, write_grid
from worker.training.modules.user_module import Parts, Phase, Setup

_NUM_SAMPLES = 64
_NUM_COMPARED = 512
"""Number of generated pictures whose mean and spread are compared with those of real pictures."""


class Generator(nn.Module):
    """Makes pictures from noise."""

    def __init__(self, *, noise: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(noise, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, SIDE**2),
        )

    def forward(self, noise_BZ: torch.Tensor) -> torch.Tensor:
        """Compute pictures (B, 1, 8, 8), from 0 to 1, from noise (B, Z)."""
        logits_BP: torch.Tensor = self.layers(noise_BZ)
        return logits_BP.sigmoid().reshape(-1, 1, SIDE, SIDE)


class Discriminator(nn.Module):
    """Distinguishes real pictures from generated ones."""

    def __init__(self, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE**2, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Compute the logits (B,) that pictures (B, 1, 8, 8) are real."""
        logits_B1: torch.Tensor = self.layers(2 * images_BCHW - 1)
        return logits_B1.squeeze(1)


def build(setup: Setup) -> Parts:
    """Build the recipe; see `GanOptions`.

    Raises:
        ValueError: An option is invalid.
        InvalidSpec: scikit-learn is not installed.
    """
    options = read_options(GanOptions, setup.options)
    train, held_out = load_digits("gan")
    generator = Generator(noise=options.noise, hidden=options.hidden)
    discriminator = Discriminator(hidden=options.hidden, dropout=options.dropout)

    def generate(num_images: int) -> torch.Tensor:
        # Batch normalisation needs two rows, but the last batch of an epoch may have only one.
        noise_BZ = torch.randn((max(2, num_images), options.noise), device=setup.device)
        images_BCHW: torch.Tensor = generator(noise_BZ)
        return images_BCHW

    def discriminator_loss(batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        real_BCHW, _ = batch
        with torch.no_grad():
            fake_BCHW = generate(len(real_BCHW))
        real_B, fake_B = discriminator(real_BCHW), discriminator(fake_BCHW)
        is_right_B = torch.cat([real_B > 0, fake_B < 0])
        loss = (_against(real_B, options.real_label) + _against(fake_B, 0.0)) / 2
        return loss, {"discriminator_accuracy": is_right_B.float().mean()}

    def generator_loss(batch: list[torch.Tensor]) -> torch.Tensor:
        real_BCHW, _ = batch
        return _against(discriminator(generate(len(real_BCHW))), 1.0)

    real_NCHW = held_out.images_NCHW.to(setup.device)
    # The same noise for every batch, so that an evaluation draws no random numbers and does not depend on the batches.
    compared_NZ = _fixed_noise(_NUM_COMPARED, options.noise, setup).to(setup.device)

    def evaluate(batch: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        images_BCHW, _ = batch
        fake_NCHW = generator(compared_NZ).float()
        return {
            "distance": (fake_NCHW.mean(dim=0) - real_NCHW.mean(dim=0)).norm(),
            "spread_distance": (fake_NCHW.std(dim=0) - real_NCHW.std(dim=0)).norm(),
            "real_score": discriminator(images_BCHW).float().sigmoid().mean(),
        }

    def finish(folder: Path) -> None:
        noise_BZ = _fixed_noise(_NUM_SAMPLES, options.noise, setup).to(setup.device)
        generator.eval()
        with torch.no_grad():
            write_grid(folder / "samples.png", generator(noise_BZ))

    return Parts(
        models={"generator": generator, "discriminator": discriminator},
        phases=[
            Phase(name="discriminator", optimizer=_adam(discriminator, options), loss=discriminator_loss),
            Phase(name="generator", optimizer=_adam(generator, options), loss=generator_loss),
        ],
        train=train,
        eval_data=held_out,
        evaluate=evaluate,
        finish=finish,
        facts=[
            "Generates handwritten digits like those of scikit-learn's load_digits (samples.png).",
            "`eval_distance` is the Euclidean distance between the mean of generated images and that of a held-out "
            "fifth of the real images; `eval_spread_distance` is that between their standard deviations.",
        ],
    )


def _against(logits_B: torch.Tensor, label: float) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits_B, torch.full_like(logits_B, label))


def _adam(model: nn.Module, options: GanOptions) -> Adam:
    return Adam(model.parameters(), lr=options.learning_rate, betas=(0.5, 0.999))


def _fixed_noise(num_rows: int, width: int, setup: Setup) -> torch.Tensor:
    return torch.randn((num_rows, width), generator=torch.Generator().manual_seed(setup.seed))
