"""The arguments among transformers' TrainingArguments that a training may set, with their types; others are rejected.

The defaults are those of transformers, except for `logging_steps`. Arguments that a user does not set are not passed to
transformers' Trainer, so its own defaults apply there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean
from jobs.specs.training_options.learning_rate_schedules import check_schedule
from jobs.specs.training_options.settable import Expected, Settable, must_be
from jobs.specs.training_options.value_types import (
    BoundedCount,
    BoundedCountOrZero,
    Flag,
    NamedValues,
    NumberAboveZero,
    NumberFromZero,
    ShareBelowOne,
)

_MOST_WORKERS = 256  # a far larger number would be forked until the host is out of processes
_MOST_EPOCHS = 1_000_000

Epochs = Annotated[float, Field(gt=0, le=_MOST_EPOCHS), Expected(f"a number above 0 and up to {_MOST_EPOCHS}")]
Workers = Annotated[int, Field(ge=0, le=_MOST_WORKERS), Expected(f"a whole number from 0 to {_MOST_WORKERS}")]
LoggingStrategy = Annotated[Literal["steps", "epoch", "no"], Expected("one of steps, epoch, no")]
EvalStrategy = Annotated[Literal["no", "steps", "epoch"], Expected("one of no, steps, epoch")]
ScheduleName = Annotated[
    Literal[
        "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt", "warmup_stable_decay",
    ],
    Expected(
        "one of linear, cosine, cosine_with_restarts, cosine_with_min_lr, polynomial, constant, constant_with_warmup, "
        "inverse_sqrt, warmup_stable_decay"
    ),
]  # fmt: skip
Optimizer = Annotated[
    Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"],
    Expected("one of adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop"),
]
Sampling = Annotated[
    Literal["random", "sequential", "group_by_length"], Expected("one of random, sequential, group_by_length")
]


class TrainingArguments(Settable):
    """Arguments of a training with `trainer: transformers`."""

    TRAINER: ClassVar[str] = "transformers"

    num_train_epochs: Epochs = 3.0
    """Number of passes over the training rows."""
    max_steps: BoundedCount | None = None
    """Number of steps to train; takes precedence over `num_train_epochs`."""
    per_device_train_batch_size: BoundedCount = 8
    """Number of rows that a slot computes at once in training."""
    per_device_eval_batch_size: BoundedCount = 8
    """Number of rows that a slot computes at once in an evaluation."""
    gradient_accumulation_steps: BoundedCount = 1
    """Number of micro-batches whose gradients are accumulated for one step."""
    learning_rate: NumberAboveZero = 5e-5
    """Learning rate after the warmup."""
    lr_scheduler_type: ScheduleName = "linear"
    """How the learning rate changes from step to step."""
    lr_scheduler_kwargs: NamedValues = Field(default_factory=dict)
    """Further arguments of the schedule."""
    warmup_steps: NumberFromZero = 0
    """Number of steps in which the learning rate rises; a number below 1 is a share of all steps."""
    weight_decay: NumberFromZero = 0.0
    """Weight decay of all weights except biases and norms."""
    optim: Optimizer = "adamw_torch_fused"
    """The optimizer."""
    adam_beta1: ShareBelowOne = 0.9
    """Decay of Adam's mean of the gradients."""
    adam_beta2: ShareBelowOne = 0.999
    """Decay of Adam's mean of the squared gradients."""
    adam_epsilon: NumberAboveZero = 1e-8
    """Number that keeps Adam from dividing by 0."""
    max_grad_norm: NumberFromZero = 1.0
    """Maximum norm of the gradients; they are clipped to it. 0 turns clipping off."""
    label_smoothing_factor: ShareBelowOne = 0.0
    """Share of each label's weight that is spread over the other labels."""
    neftune_noise_alpha: NumberFromZero | None = None
    """Strength of the noise on token vectors (NEFTune); none when absent."""
    gradient_checkpointing: Flag = False
    """Whether to save memory by computing activations twice."""
    logging_steps: BoundedCount = 10
    """Number of steps between two reports of the metrics."""
    logging_strategy: LoggingStrategy = "steps"
    """When to report metrics."""
    logging_first_step: Flag = False
    """Whether to report the first step, too."""
    eval_strategy: EvalStrategy = "no"
    """When to evaluate. The default is `steps` if `eval_steps` or `checkpoint.best` is set."""
    eval_steps: BoundedCount | None = None
    """Number of steps between two evaluations; `logging_steps` when absent."""
    eval_on_start: Flag = False
    """Whether to evaluate before the first step."""
    seed: BoundedCountOrZero = 42
    """Seed of new weights, of the order of rows and of all other random choices."""
    data_seed: BoundedCountOrZero | None = None
    """Seed of the order of rows; `seed` when absent."""
    full_determinism: Flag = False
    """Whether to use only deterministic kernels, which are slower."""
    tf32: Flag | None = None
    """Whether to use TF32 for float32 on NVIDIA GPUs; torch's default when absent."""
    torch_compile: Flag = False
    """Whether to compile the model."""
    dataloader_num_workers: Workers = 0
    """Number of processes that load rows; with 0, the training process loads them."""
    dataloader_drop_last: Flag = False
    """Whether to leave out the last rows of an epoch that do not fill a batch."""
    train_sampling_strategy: Sampling = "random"
    """Order of the training rows."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Check a spec's arguments and return them as a model.

        Args:
            given: The spec's `arguments`.

        Raises:
            InvalidSpec: An argument is unknown, reserved or has a wrong value; the message names it, and `param` is
                `arguments.<name>`.
        """
        for name, value in given.items():
            if name in RESERVED:
                raise _refused(name, f"cannot be set in a spec: {RESERVED[name]}")
            if name not in cls.names():
                hint = did_you_mean(name, cls.names()) or f"; known ones: {', '.join(cls.names())}"
                raise _refused(name, f"trainer: {cls.TRAINER} has no argument '{name}'{hint}")
            if value is None:
                raise _refused(name, must_be(cls.expected(name), value))
        try:
            arguments = cls.model_validate(dict(given))
        except ValidationError as error:
            name, message = cls.wrong_name(error, given)
            raise _refused(name, str(message)) from error
        check_schedule(
            arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs, learning_rate=arguments.learning_rate
        )
        return arguments


class TorchArguments(TrainingArguments):
    """Arguments of a training with `trainer: torch`. It supports fewer arguments, but its module has `options`."""

    TRAINER: ClassVar[str] = "torch"

    max_grad_norm: NumberFromZero = 0.0
    """Maximum norm of the gradients; they are clipped to it. 0 turns clipping off."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arguments that the plain loop supports."""
        return (
            "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
            "gradient_accumulation_steps", "max_grad_norm", "logging_steps", "eval_strategy", "eval_steps", "seed",
            "dataloader_num_workers", "dataloader_drop_last",
        )  # fmt: skip


ARGUMENTS: Mapping[str, type[TrainingArguments]] = {
    model.TRAINER: model for model in (TrainingArguments, TorchArguments)
}
"""Trainer -> the model of its arguments."""


def _refused(name: str, reason: str) -> InvalidSpec:
    return InvalidSpec(f"arguments.{name}: {reason}", param=f"arguments.{name}")


_OURS = "Stoker chooses the folders and keeps the checkpoints (see `checkpoint`)"
_HUB = "a job does not upload or report anything to other services"
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
