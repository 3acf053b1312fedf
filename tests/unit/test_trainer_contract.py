"""What worker/training/loops/trainer.py uses of the Trainer beyond its documented methods is there, as it is used."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer

PRIVATE = {
    "_get_train_sampler": ["train_dataset"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_maybe_log_save_evaluate": [
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
    ],
    "_save_checkpoint": ["model", "trial"],
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_method_of_the_trainer_takes_what_we_expect(name: str) -> None:
    assert list(inspect.signature(getattr(Trainer, name)).parameters)[1:] == PRIVATE[name]


def test_the_trainer_ends_each_step_with_the_method_that_we_override() -> None:
    called = inspect.getsource(Trainer)
    assert "self._maybe_log_save_evaluate(" in called
    assert "self._get_train_sampler" in called
