"""An LSTM that reads a handwritten digit line by line, from top to bottom, and then classifies it.

Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997).
B: batch, T: lines (8), W: pixels of a line (8), H: hidden units, K: classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Adam

from jobs.specs.training_options.recipe_options import LstmOptions, read_options
from worker.training.modules.recipes.digits import NUM_CLASSES, SIDE, load_digits
from worker.training.modules.user_module import Parts, Phase, Setup


class Lstm(nn.Module):
    """An LSTM over lines and a linear layer over its last state."""

    def __init__(self, *, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, hidden, num_layers=layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, NUM_CLASSES)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, 10) from pictures (B, 1, 8, 8)."""
        lines_BTW = images_BCHW.squeeze(1)
        # Always in float32, since torch has no LSTM in bfloat16 for CPUs without such instructions.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            states_BTH, _ = self.lstm(lines_BTW.float())
        logits_BK: torch.Tensor = self.linear(self.dropout(states_BTH[:, -1]))
        return logits_BK


def build(setup: Setup) -> Parts:
    """Build the recipe; see `LstmOptions`.

    Raises:
        ValueError: An option is invalid.
        InvalidSpec: scikit-learn is not installed.
    """
    options = read_options(LstmOptions, setup.options)
    train, held_out = load_digits("lstm")
    model = Lstm(hidden=options.hidden, layers=options.layers, dropout=options.dropout)

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
        phases=[Phase(optimizer=Adam(model.parameters(), lr=options.learning_rate), loss=loss)],
        train=train,
        eval_data=held_out,
        evaluate=evaluate,
        facts=[
            "Classifies the handwritten digits of scikit-learn's load_digits, which it reads line by line; a fixed "
            "fifth was held out.",
        ],
    )
