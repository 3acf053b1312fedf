"""What transformers takes where a spec's `arguments` say nothing, for those that must know the number themselves."""

from __future__ import annotations

SEED = 42
NUM_EPOCHS = 3.0
MICRO_BATCH = 8
"""Rows of `per_device_train_batch_size`, and of `per_device_eval_batch_size`."""
ACCUMULATION = 1
"""Micro-batches of a step."""
