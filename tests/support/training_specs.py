"""The small trainings that tests interrupt: a user's module on small images, and a task on a tiny encoder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.support import tiny
from tests.support.rows import write_rows

NUM_STEPS = 18


CLASSIFIER = '''
"""Dropout, batch statistics, noise on the rows, a schedule and momentum: all that a resumption can get wrong."""
import random
import numpy as np
import torch
from torch import nn
from stoker.training import Parts, Phase, Setup

class Images(torch.utils.data.Dataset):
    """A pattern of 8 x 8 for each of ten classes, with noise."""

    def __init__(self, first, last):
        drawn = np.random.RandomState(0)
        patterns, self.labels = drawn.rand(10, 8, 8), np.arange(first, last) % 10
        self.images = patterns[self.labels] + 0.1 * drawn.randn(last - first, 8, 8)
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, index):
        image = torch.tensor(self.images[index], dtype=torch.float32) + 0.1 * torch.randn(8, 8)
        image = image * float(np.random.uniform(0.9, 1.1)) + random.gauss(0, 0.01)
        return image.reshape(64), int(self.labels[index])

def build(setup):
    if setup.options.get("width", 32) < 1:
        raise ValueError("options.width: must be at least 1")
    width = setup.options.get("width", 32)
    model = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))
    def loss(batch):
        images, labels = batch
        return nn.functional.cross_entropy(model(images + 0.01 * torch.randn_like(images)), labels)
    def evaluate(batch):
        images, labels = batch
        return {"accuracy": (model(images).argmax(1) == labels).float().mean()}
    return Parts(
        models={"net": model},
        phases=[Phase(
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss=loss,
            scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps),
        )],
        train=Images(0, 60), eval_data=Images(60, 100), evaluate=evaluate,
    )
'''


def write_module(folder: Path, source: str) -> str:
    path = folder / "net.py"
    path.write_text(source)
    return str(path)


def module_spec(folder: Path) -> dict[str, Any]:
    """A training of a small net on images, with evaluations; its module is written to `folder`."""
    return {
        "kind": "training",
        "trainer": "torch",
        "module": write_module(folder, CLASSIFIER),
        "arguments": {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": 8, "logging_steps": 1, "eval_strategy": "steps",
            "eval_steps": 6, "max_grad_norm": 1.0,
        },
        "checkpoint": {"every_steps": 4, "best": "eval_accuracy"},
    }  # fmt: skip


def encoder_spec(folder: Path) -> dict[str, Any]:
    """A training of a tiny encoder with dropout on 60 rows, with evaluations."""
    chosen = random.Random(5)
    records = [
        {"text": f"{number} {chosen.choice(tiny.SENTENCES)}", "label": chosen.choice(("a", "b"))}
        for number in range(60)
    ]
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(tiny.tiny_encoder(folder / "encoder")),
        "data": {
            "train": str(write_rows(folder / "train.jsonl", records)),
            "eval": str(write_rows(folder / "eval.jsonl", records[:12])),
        },
        "arguments": {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1,
            "eval_strategy": "steps", "eval_steps": 6,
        },
        "checkpoint": {"every_steps": 4, "best": "eval_accuracy"},
    }  # fmt: skip
