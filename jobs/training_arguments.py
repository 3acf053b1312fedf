"""Which of transformers' TrainingArguments a training spec may set, and to what; the others are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jobs.errors import InvalidSpec
from jobs.wording import did_you_mean, shown

Check = Callable[[Any], bool]
_LARGEST = 2**31 - 1
_MOST_WORKERS = 256
"""Processes of a loader; far more would only be forked until the host has no more."""


def check_arguments(arguments: Mapping[str, Any], *, trainer: str) -> None:
    """Refuse arguments that are not transformers', that are Stoker's own business, or whose value cannot be.

    Args:
        arguments: of a spec.
        trainer: `transformers` or `torch`; the latter's loop knows fewer.

    Raises:
        InvalidSpec: one of them is wrong; the message names it, and `param` is `arguments.<name>`.
    """
    known = ARGUMENTS if trainer == "transformers" else {name: ARGUMENTS[name] for name in TORCH_ARGUMENTS}
    for name, value in arguments.items():
        param = f"arguments.{name}"
        if name in RESERVED:
            raise InvalidSpec(f"{param}: is not the spec's to set: {RESERVED[name]}", param=param)
        if name not in known:
            hint = did_you_mean(name, known) or f"; known ones: {', '.join(known)}"
            raise InvalidSpec(f"{param}: trainer: {trainer} has no argument '{name}'{hint}", param=param)
        check, expected = known[name]
        if not check(value):
            raise InvalidSpec(f"{param}: must be {expected}, not {shown(value, 80)}", param=param)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> tuple[Check, str]:
    def check(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST

    return check, f"a whole number from {least} to {_LARGEST}"


def _up_to(most: int) -> tuple[Check, str]:
    check, _ = _whole(0)
    return lambda value: check(value) and value <= most, f"a whole number from 0 to {most}"


def _at_least(least: float) -> tuple[Check, str]:
    return lambda value: _is_number(value) and value >= least, f"a number from {least:g}"


def _above(least: float, *, most: int | None = None) -> tuple[Check, str]:
    def check(value: object) -> bool:
        return _is_number(value) and least < value and (most is None or value <= most)  # type: ignore[operator]

    return check, f"a number above {least:g}" + ("" if most is None else f" and up to {most}")


def _part() -> tuple[Check, str]:
    return lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 and below 1"


def _one_of(*names: str) -> tuple[Check, str]:
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


_FLAG: tuple[Check, str] = (lambda value: isinstance(value, bool), "true or false")
_MAPPING: tuple[Check, str] = (
    lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
    "a mapping of names to values",
)
_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "warmup_stable_decay",
)  # fmt: skip
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")

ARGUMENTS: dict[str, tuple[Check, str]] = {
    "num_train_epochs": _above(0, most=1_000_000),
    "max_steps": _whole(1),
    "per_device_train_batch_size": _whole(1),
    "per_device_eval_batch_size": _whole(1),
    "gradient_accumulation_steps": _whole(1),
    "learning_rate": _above(0),
    "lr_scheduler_type": _one_of(*_SCHEDULES),
    "lr_scheduler_kwargs": _MAPPING,
    "warmup_steps": _at_least(0),
    "weight_decay": _at_least(0),
    "optim": _one_of(*_OPTIMIZERS),
    "adam_beta1": _part(),
    "adam_beta2": _part(),
    "adam_epsilon": _above(0),
    "max_grad_norm": _at_least(0),
    "label_smoothing_factor": _part(),
    "neftune_noise_alpha": _at_least(0),
    "gradient_checkpointing": _FLAG,
    "logging_steps": _whole(1),
    "logging_strategy": _one_of("steps", "epoch", "no"),
    "logging_first_step": _FLAG,
    "eval_strategy": _one_of("no", "steps", "epoch"),
    "eval_steps": _whole(1),
    "eval_on_start": _FLAG,
    "seed": _whole(0),
    "data_seed": _whole(0),
    "full_determinism": _FLAG,
    "tf32": _FLAG,
    "torch_compile": _FLAG,
    "dataloader_num_workers": _up_to(_MOST_WORKERS),
    "dataloader_drop_last": _FLAG,
    "train_sampling_strategy": _one_of("random", "sequential", "group_by_length"),
}
"""Each argument with its check and what is expected. `warmup_steps` below 1 is a part of all steps, as there."""
TORCH_ARGUMENTS = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "logging_steps", "eval_strategy", "eval_steps", "seed",
    "dataloader_num_workers", "dataloader_drop_last",
)  # fmt: skip
"""Those that the plain loop knows; the rest is its module's business (`options`)."""

_OURS = "Stoker names the folders and keeps the checkpoints (see `checkpoint`)"
_HUB = "a job uploads nothing"
_DTYPE = "the spec's `dtype` says it"
_SLOTS = "the spec's `slots` say it"
RESERVED: dict[str, str] = {
    **dict.fromkeys(("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model"), _OURS),
    **dict.fromkeys(
        ("save_on_each_node", "resume_from_checkpoint", "ignore_data_skip", "enable_jit_checkpoint"), _OURS
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "`checkpoint.best` says it"
    ),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_private_repo"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision", "report_to", "run_name", "project", "trackio_space_id"), _HUB),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), _DTYPE),
    **dict.fromkeys(("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config"), _SLOTS),
    **dict.fromkeys(("deepspeed", "accelerator_config", "parallelism_config"), _SLOTS),
    "auto_find_batch_size": "it would break exact resumption; `on_out_of_memory: halve` does it",
}
"""Arguments that a spec may not set, with the reason."""
