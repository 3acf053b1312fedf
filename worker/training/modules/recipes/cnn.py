"""A small convolutional network for handwritten digits, after LeNet-5.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998).
B: batch, C: channels, H, W: height and width, K: classes, F: features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from jobs.specs.training_options.recipe_options import CnnOptions, read_options
from worker.training.modules.recipes.digits import NUM_CLASSES, SIDE, load_digits
from worker.training.modules.user_module import Parts, Phase, Setup


class Cnn(nn.Module):
    """Two convolutions, each halving the picture, and two linear layers."""

    def __init__(self, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1)
        self.linear1 = nn.Linear(2 * channels * (SIDE // 4) ** 2, hidden)
        self.linear2 = nn.Linear(hidden, NUM_CLASSES)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, 10) from pictures (B, 1, 8, 8)."""
        maps_BCHW = functional.max_pool2d(functional.relu(self.conv1(images_BCHW)), 2)  # (B, channels, 4, 4)
        maps_BCHW = functional.max_pool2d(functional.relu(self.conv2(maps_BCHW)), 2)  # (B, 2 * channels, 2, 2)
        features_BF = functional.relu(self.linear1(maps_BCHW.flatten(1)))
        logits_BK: torch.Tensor = self.linear2(features_BF)
        return logits_BK


def build(setup: Setup) -> Parts:
    """Build the recipe; see `CnnOptions`.

    Raises:
        ValueError: An option is invalid.
        InvalidSpec: scikit-learn is not installed.
    """
    options = read_options(CnnOptions, setup.options)
    train, held_out = load_digits("cnn", shift=1 if options.augment else 0)
    model = Cnn(channels=options.channels, hidden=options.hidden)
    optimizer = SGD(
        model.parameters(), lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay
    )

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        images_BCHW, labels_B = batch
        return functional.cross_entropy(model(images_BCHW), labels_B)

    def evaluate(batch: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        images_BCHW, labels_B = batch
        logits_BK = model(images_BCHW)
        is_right_B = logits_BK.argmax(dim=1) == labels_B
        return {"loss": functional.cross_entropy(logits_BK, labels_B), "accuracy": is_right_B.float().mean()}

    return Parts(
        models={"model": model},
        phases=[Phase(optimizer=optimizer, loss=loss, scheduler=_half_cosine)],
        train=train,
        eval_data=held_out,
        evaluate=evaluate,
        facts=["Classifies the ten handwritten digits of scikit-learn's load_digits; a fixed fifth was held out."],
    )


def _half_cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, T_max=num_steps)
