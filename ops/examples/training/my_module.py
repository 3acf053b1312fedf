"""An example of a training module, to copy: a small network learns a number from two others.

Every line of data.train has the columns that my-module.yaml names.
"""

import torch
from torch import nn
from torch.nn import functional

from stoker.training import Parts, Phase, Setup


def build(setup: Setup) -> Parts:
    """Make the model, its optimizer and the data. The loop does the rest."""
    hidden = setup.options.get("hidden", 32)
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError("options.hidden: must be a whole number from 1")
    if setup.rows is None:
        raise ValueError("data: is required: the rows to train on")

    model = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def collate(rows):
        """Convert rows, which are mappings, to tensors: inputs (rows, 2) and targets (rows,)."""
        inputs = torch.tensor([[float(row["x"]), float(row["y"])] for row in rows])
        return inputs, torch.tensor([float(row["target"]) for row in rows])

    def loss(batch):
        inputs, targets = batch
        return functional.mse_loss(model(inputs).squeeze(1), targets)

    def evaluate(batch):
        inputs, targets = batch
        errors = model(inputs).squeeze(1) - targets
        return {"loss": errors.square().mean(), "absolute_error": errors.abs().mean()}

    return Parts(
        models={"model": model},
        phases=[Phase(optimizer=torch.optim.AdamW(model.parameters(), lr=0.01), loss=loss)],
        train=setup.rows,
        collate=collate,
        eval_data=setup.eval_rows,
        evaluate=evaluate,
    )
