"""The Trainer's arguments: those of a spec, and those that this package sets itself."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from jobs.errors import InvalidSpec
from jobs.messages import one_line
from jobs.specs.inference import TrainingSpec
from worker.device import pick_device, resolve_dtype
from worker.training.loops.schedule import halved
from worker.training.plan import Plan

_DECIDED_HERE = frozenset({
    "logging_steps", "logging_strategy", "logging_first_step", "eval_strategy", "eval_steps", "eval_on_start",
    "train_sampling_strategy",
})  # fmt: skip


def make_arguments(spec: TrainingSpec, plan: Plan, *, is_raw: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a spec.

    Raises:
        InvalidSpec: transformers rejects an argument, or the device does not support the dtype.
    """
    arguments = {name: value for name, value in spec.arguments.items() if name not in _DECIDED_HERE}
    micro_batch, accumulation = halved(spec.training_arguments, plan.num_halvings)
    arguments |= {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    dtype = resolve_dtype(spec.dtype, pick_device())
    try:
        return TrainingArguments(
            output_dir=plan.folder,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            log_level="error",
            disable_tqdm=True,
            use_cpu=plan.device == "cpu",
            bf16=dtype is torch.bfloat16,
            fp16=dtype is torch.float16,
            logging_nan_inf_filter=False,  # it would read each loss, and hide losses that must end the training
            remove_unused_columns=not is_raw,
            ddp_find_unused_parameters=True if plan.num_ranks > 1 else None,  # as training on one slot allows it, too
            **arguments,
        )
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"arguments: {one_line(error)}", param="arguments") from error
