"""transformers' defaults of training arguments, for code that needs a value when a spec does not set it."""

from __future__ import annotations

SEED = 42
NUM_EPOCHS = 3.0
MICRO_BATCH = 8
"""Default of `per_device_train_batch_size` and of `per_device_eval_batch_size`, in rows."""
ACCUMULATION = 1
"""Default of `gradient_accumulation_steps`: micro-batches of one step."""
