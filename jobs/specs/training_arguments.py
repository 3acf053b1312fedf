"""Which of transformers' TrainingArguments a training spec may set, with the values that each accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, shown

Check = Callable[[Any], bool]
_LARGEST = 2**31 - 1
_MOST_WORKERS = 256
"""The most processes of a data loader; far more would exhaust the host."""


def check_arguments(arguments: Mapping[str, Any], *, trainer: str) -> None:
    """Refuse arguments that are unknown, that Stoker sets itself, or that have an invalid value.

    Args:
        arguments: The spec's `arguments`.
        trainer: `transformers` or `torch`; the loop of `torch` has fewer arguments.

    Raises:
        InvalidSpec: An argument is invalid. The message names it, and `param` is `arguments.<name>`.
    """
    known = ARGUMENTS if trainer == "transformers" else {name: ARGUMENTS[name] for name in TORCH_ARGUMENTS}
    for name, value in arguments.items():
        param = f"arguments.{name}"
        if name in RESERVED:
            raise InvalidSpec(f"{param}: cannot be set in a spec: {RESERVED[name]}", param=param)
        if name not in known:
            hint = did_you_mean(name, known) or f"; known ones: {', '.join(known)}"
            raise InvalidSpec(f"{param}: trainer: {trainer} has no argument '{name}'{hint}", param=param)
        check, expected = known[name]
        if not check(value):
            raise InvalidSpec(f"{param}: must be {expected}, not {shown(value, 80)}", param=param)
    if trainer == "transformers":
        _check_schedule(arguments)


def _check_schedule(arguments: Mapping[str, Any]) -> None:
    """Refuse `lr_scheduler_kwargs` that the learning rate scheduler does not accept."""
    name = arguments.get("lr_scheduler_type", "linear")
    schedule, given = SCHEDULES[name], arguments.get("lr_scheduler_kwargs") or {}
    param = "arguments.lr_scheduler_kwargs"

    def refused(inner: str, reason: str) -> InvalidSpec:
        return InvalidSpec(f"{param}{inner}: {reason}", param=param)

    for key, value in given.items():
        if key not in schedule.arguments:
            has = ", ".join(schedule.arguments) or "none"
            raise refused(f".{key}", f"the schedule '{name}' has no such argument; it has {has}")
        check, expected = schedule.arguments[key]
        if not check(value) and not (value is None and key in schedule.may_be_null):
            raise refused(f".{key}", f"must be {expected}, not {shown(value, 80)}")
    said = [key for key in schedule.one_of if given.get(key) is not None]
    if schedule.one_of and len(said) != 1:
        raise refused("", f"the schedule '{name}' needs {' or '.join(schedule.one_of)}, and not both")
    missing = next((key for key in schedule.required if key not in given), None)
    if missing is not None:
        raise refused("", f"the schedule '{name}' needs {missing}")
    if name == "polynomial":
        start, end = arguments.get("learning_rate", _LEARNING_RATE), given.get("lr_end", _POLYNOMIAL_END)
        if start <= end:
            raise refused("", f"lr_end, {end:g}, must be smaller than the learning rate, {start:g}")


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
_CYCLES = {"num_cycles": _at_least(0)}
_SHAPES = _one_of("linear", "cosine", "1-sqrt")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The arguments of a learning rate scheduler, except for numbers of steps that the training sets."""

    arguments: Mapping[str, tuple[Check, str]] = field(default_factory=dict)
    may_be_null: tuple[str, ...] = ()
    """Arguments for which null means that they are not set."""
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """Arguments of which exactly one must be given."""


SCHEDULES: Mapping[str, Schedule] = {
    "linear": Schedule(),
    "cosine": Schedule(_CYCLES),
    "cosine_with_restarts": Schedule(_CYCLES),
    "cosine_with_min_lr": Schedule(
        {**_CYCLES, "min_lr": _at_least(0), "min_lr_rate": _at_least(0)},
        may_be_null=("min_lr", "min_lr_rate"),
        one_of=("min_lr", "min_lr_rate"),
    ),
    "polynomial": Schedule({"lr_end": _at_least(0), "power": _at_least(0)}),
    "constant": Schedule(),
    "constant_with_warmup": Schedule(),
    "inverse_sqrt": Schedule({"timescale": _above(0)}, may_be_null=("timescale",)),
    "warmup_stable_decay": Schedule(
        {
            "num_decay_steps": _whole(0),
            "num_stable_steps": _whole(0),
            "warmup_type": _SHAPES,
            "decay_type": _SHAPES,
            "min_lr_ratio": _at_least(0),
            **_CYCLES,
        },
        may_be_null=("num_stable_steps",),
        required=("num_decay_steps",),
    ),
}
"""Value of `lr_scheduler_type` -> the arguments that `lr_scheduler_kwargs` may contain."""
_LEARNING_RATE = 5e-5
"""transformers' default of `learning_rate`."""
_POLYNOMIAL_END = 1e-7
"""transformers' default of `lr_end`."""
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")

ARGUMENTS: dict[str, tuple[Check, str]] = {
    "num_train_epochs": _above(0, most=1_000_000),
    "max_steps": _whole(1),
    "per_device_train_batch_size": _whole(1),
    "per_device_eval_batch_size": _whole(1),
    "gradient_accumulation_steps": _whole(1),
    "learning_rate": _above(0),
    "lr_scheduler_type": _one_of(*SCHEDULES),
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
"""Name of an argument -> its check, and a description of valid values. `warmup_steps` below 1 is a fraction of all
steps, as in transformers."""
TORCH_ARGUMENTS = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "logging_steps", "eval_strategy", "eval_steps", "seed",
    "dataloader_num_workers", "dataloader_drop_last",
)  # fmt: skip
"""Arguments of the plain loop. Everything else is set by the module (`options`)."""

_OURS = "Stoker names the folders and keeps the checkpoints (see `checkpoint`)"
_HUB = "a job uploads nothing"
_DTYPE = "set the spec's `dtype` instead"
_SLOTS = "set the spec's `slots` instead"
RESERVED: dict[str, str] = {
    **dict.fromkeys(("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model"), _OURS),
    **dict.fromkeys(
        ("save_on_each_node", "resume_from_checkpoint", "ignore_data_skip", "enable_jit_checkpoint"), _OURS
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "set `checkpoint.best` instead"
    ),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_private_repo"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision", "report_to", "run_name", "project", "trackio_space_id"), _HUB),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), _DTYPE),
    **dict.fromkeys(("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config"), _SLOTS),
    **dict.fromkeys(("deepspeed", "accelerator_config", "parallelism_config"), _SLOTS),
    "auto_find_batch_size": "it would break exact resumption; set `on_out_of_memory: halve` instead",
}
"""Argument that a spec may not set -> the reason."""
