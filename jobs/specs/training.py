"""The pydantic model of a training job's spec: what to train, on which rows, how, and which checkpoints to keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from jobs.errors import InvalidSpec
from jobs.specs.bounds import MOST_TARGET_MODULES, Columns, Name, Paths, PathText, Values
from jobs.specs.fields import (
    LARGEST_INTEGER,
    After,
    Duration,
    InputFormat,
    InputSpec,
    Priority,
    PromiseTime,
    StartAt,
    Strict,
    TextFields,
    read_columns,
    unread_input,
)
from jobs.specs.needs import NeedsSpec
from jobs.specs.training_options.recipe_options import OPTIONS, read_options
from jobs.specs.training_options.training_arguments import ARGUMENTS, TrainingArguments
from jobs.specs.training_options.training_metrics import PREFIX, RECIPE_METRICS, Mode
from jobs.specs.training_options.training_metrics import best_mode as mode_of_best
from jobs.specs.training_options.training_tasks import TRAINING_TASKS, TaskName, TrainingTask

MOST_SLOTS = 64
"""Maximum number of slots of one training; no host has more."""

RECIPES = tuple(RECIPE_METRICS)
"""Names of the modules that come with Stoker; a spec writes `recipes.<name>`."""


def recipe_name(module: str) -> str | None:
    """Return the name in `recipes.<name>`; None if `module` is the path of a file.

    Raises:
        InvalidSpec: The recipe does not exist.
    """
    prefix, dot, name = module.partition(".")
    if not dot or prefix != "recipes" or "/" in module or module.endswith(".py"):
        return None
    if name not in RECIPES:
        raise InvalidSpec(f"module: there is no '{module}'; the recipes are {', '.join(RECIPES)}", param="module")
    return name


class ArchitectureSpec(Strict):
    """A model from scratch: the `model_type` of a configuration of transformers, and its values."""

    architecture: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """transformers' `model_type`: `bert`, `llama`, `vit`, ..."""
    config: Values = Field(default_factory=dict)
    """Values of the configuration."""
    processor: PathText | None = None
    """Folder or hub id of the tokenizer, image processor or feature extractor to use."""


class DataSpec(TextFields):
    """The rows to train on, and those to evaluate."""

    train: Paths = Field(min_length=1)
    """A file, a glob, a list of these, `file:<id>` of an upload, a data set folder, or `hf://datasets/<name>`."""
    eval: Paths | None = Field(default=None, min_length=1)
    """The rows to evaluate, in the same forms as `train`."""
    format: InputFormat = "auto"
    columns: Columns = Field(default_factory=dict)
    """Input name of the task -> the user's column. An input that is not named here is read from the column of the
    same name. An optional input that is null here is not read."""
    split: Name = "train"
    """The split of a data set to train on."""
    eval_split: Name | None = None
    """The split of the same data set to evaluate, if `eval` is absent."""
    config: Name | None = None
    """The configuration of a hub data set."""
    max_length: Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] | None = None
    """Number of tokens to cut texts to; by default the model's limit. For `text-generation`, the length of a block."""

    @model_validator(mode="after")
    def _one_eval(self) -> DataSpec:
        if self.eval is not None and self.eval_split is not None:
            raise ValueError("data.eval_split cannot be used with data.eval: it names a split of data.train's data set")
        return self

    @property
    def train_input(self) -> InputSpec:
        """The rows to train on, as an input."""
        return self._input(self.train, self.split)

    @property
    def eval_input(self) -> InputSpec | None:
        """The rows to evaluate, as an input; None if there are none."""
        if self.eval is not None:
            return self._input(self.eval, self.split)
        return None if self.eval_split is None else self._input(self.train, self.eval_split)

    def _input(self, path: str | list[str], split: str) -> InputSpec:
        text_fields = {name: getattr(self, name) for name in TextFields.model_fields}
        return InputSpec(path=path, format=self.format, split=split, config=self.config, **text_fields)


class LoraSpec(Strict):
    """Low-rank adapters (Hu et al. 2021), trained in place of all weights and merged into the model at the end."""

    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scale of the adapters: their output is multiplied by `alpha / r`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the adapters' inputs."""
    target_modules: (
        Annotated[list[Name], Field(min_length=1, max_length=MOST_TARGET_MODULES)] | Literal["all-linear"]
    ) = "all-linear"
    """Modules that get adapters, by names or the ends of names; `all-linear` for all linear ones except the output."""


class CheckpointSpec(Strict):
    """Which checkpoints are written and kept."""

    every_steps: Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] = 500
    """Number of steps between two checkpoints."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of newest checkpoints to keep, in addition to the best one if `best` is set."""
    best: Name | None = None
    """A metric of the evaluation, such as `eval_loss` or `eval_accuracy`. The checkpoint with its best value is kept,
    and becomes the result."""
    mode: Mode | None = None
    """Whether the least or the largest value of `best` is the best; by default derived from the metric's name."""

    @property
    def best_mode(self) -> Mode:
        """Whether the least or the largest value of `best` is the best; has no meaning without `best`."""
        return "min" if self.best is None else mode_of_best(self.best, self.mode)


class TrainingSpec(Strict):
    """A training job."""

    version: Literal[1] = 1
    kind: Literal["training"]
    name: str | None = Field(default=None, max_length=200)
    """A label for people."""
    trainer: Literal["transformers", "torch"] = "transformers"
    """`transformers`: transformers' Trainer, with `task` and `model`. `torch`: a plain loop that trains what `module`
    builds."""
    task: TaskName | None = None
    """The task; required with `trainer: transformers`."""
    model: PathText | ArchitectureSpec | None = None
    """With `trainer: transformers`: the folder or hub id of the model to start from, or an architecture to train from
    scratch."""
    module: PathText | None = None
    """With `trainer: torch`: `recipes.<name>`, or the path of a Python file in a folder that the operator lists."""
    options: Values = Field(default_factory=dict)
    """With `trainer: torch`: the options that the module receives."""
    data: DataSpec | None = None
    """The rows; required with `trainer: transformers`. With `torch` needed only if the module reads rows."""
    arguments: Values = Field(default_factory=dict)
    """Training arguments, by the names of transformers' TrainingArguments."""
    lora: LoraSpec | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the computation; weights stay float32. `auto`: float32 on a CPU, bfloat16 on a GPU that has it."""
    slots: Annotated[int, Field(ge=1, le=MOST_SLOTS)] = 1
    """Number of slots that train together. They are on one host, of one kind of device, and granted all at once."""
    needs: NeedsSpec = NeedsSpec()
    """What each of the job's slots must have."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    on_out_of_memory: Literal["fail", "halve"] = "fail"
    """`halve`: try again with half the micro-batch and twice the accumulation steps."""
    priority: Priority = Priority.NORMAL
    after: After = Field(default_factory=list)
    """Jobs that must end before this one begins: `job:<id>`, or `{job: job:<id>, when: any}`."""
    start_at: StartAt | None = None
    """The job begins at this time, or later. A time with a time zone, such as `2027-01-31T07:00:00Z`."""
    time_limit: Duration | None = None
    """Seconds after the job is ready when it ends as `expired`; can be written as `2h`. A job is ready when it is
    submitted, or later: at `start_at`, and when the jobs that it comes after have ended."""
    promise: PromiseTime | None = None
    """When the job must be done. It is refused if that cannot be kept beside earlier promises. It does not end then."""
    _training_arguments: TrainingArguments = PrivateAttr()

    @model_validator(mode="after")
    def _belongs_to_its_trainer(self) -> TrainingSpec:
        needed: tuple[str, ...] = ("task", "model", "data")
        foreign: tuple[str, ...] = ("module", "options")
        if self.trainer == "torch":
            needed, foreign = ("module",), ("task", "model", "lora")
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: is required with trainer: {self.trainer}")
        for name in foreign:
            if getattr(self, name):
                raise ValueError(f"{name}: cannot be used with trainer: {self.trainer}")
        return self

    @model_validator(mode="after")
    def _known_words(self) -> TrainingSpec:
        self._training_arguments = ARGUMENTS[self.trainer].read(self.arguments)
        if self.task_info is not None and self.data is not None:
            known = (*self.task_info.inputs, *self.task_info.optional)
            for name in self.data.columns:
                if name not in known:
                    raise InvalidSpec(
                        f"data.columns.{name}: task '{self.task}' has no input '{name}'; it has {', '.join(known)}",
                        param=f"data.columns.{name}",
                    )
        if self.data is not None:
            required = tuple(self.data.columns) if self.task_info is None else self.task_info.inputs
            unread = unread_input(required, self.data.columns)
            if unread is not None:
                raise InvalidSpec(f"data.columns.{unread}: must name a column", param=f"data.columns.{unread}")
        self._check_evaluation()
        if self.task_info is not None and self.data is not None and self.data.max_length is not None:
            if not self.task_info.cuts_texts:
                raise ValueError(
                    f"data.max_length: cannot be used with task: {self.task}, which does not truncate texts"
                )
            if self.task == "text-generation" and self.data.max_length < 2:
                raise ValueError(
                    "data.max_length: must be at least 2, because a block of one token has nothing to predict"
                )
        groups = self.training_arguments.train_sampling_strategy == "group_by_length"
        if self.task_info is not None and groups and not self.task_info.has_lengths:
            raise ValueError(f"arguments.train_sampling_strategy: rows of {self.task} have no length to group by")
        if self.task == "automatic-speech-recognition" and self.training_arguments.label_smoothing_factor:
            raise ValueError(
                "arguments.label_smoothing_factor: cannot be used with the loss of speech recognition (CTC)"
            )
        if self.lora is not None and self.task != "text-generation":
            raise ValueError("lora: can only be used with task: text-generation")
        recipe = None if self.module is None else recipe_name(self.module)
        if recipe is not None:
            read_options(OPTIONS[recipe], self.options)
        if self.trainer == "torch" and self.data is not None and not self.data.columns:
            raise ValueError("data.columns: is required with trainer: torch; name the columns that the module reads")
        return self

    def _check_evaluation(self) -> None:
        """Reject settings for evaluations that cannot take place or that contradict each other."""
        has_eval = self.data is not None and self.data.eval_input is not None
        wanted = self.evaluation_param
        if self.trainer == "transformers" and not has_eval and wanted is not None:
            raise InvalidSpec(f"{wanted}: needs rows to evaluate; set data.eval or data.eval_split", param=wanted)
        strategy = self.training_arguments.eval_strategy if "eval_strategy" in self.arguments else None
        best = self.checkpoint.best
        if strategy in ("no", "epoch") and "eval_steps" in self.arguments:
            raise ValueError(f"arguments.eval_steps: can only be used with eval_strategy: steps, not {strategy}")
        if best is None:
            if self.checkpoint.mode is not None:
                raise ValueError("checkpoint.mode: can only be used with checkpoint.best")
            return
        if strategy == "no":
            raise ValueError("checkpoint.best: needs evaluations, but arguments.eval_strategy is no")
        known = self.eval_metrics
        if not best.startswith(PREFIX) and (known is None or PREFIX + best in known):
            hint = f"the metrics of an evaluation begin with '{PREFIX}'; did you mean '{PREFIX}{best}'?"
            raise ValueError(f"checkpoint.best: {hint}")
        if known is not None and best not in known:
            raise ValueError(
                f"checkpoint.best: an evaluation has no metric '{best}'; its metrics are {', '.join(known)}"
            )
        mode_of_best(best, self.checkpoint.mode)

    @property
    def training_arguments(self) -> TrainingArguments:
        """`arguments` as the trainer's argument model, with defaults."""
        return self._training_arguments

    @property
    def evaluation_param(self) -> str | None:
        """Path of the field that requests evaluations during the training; None if there is none."""
        if self.checkpoint.best is not None:
            return "checkpoint.best"
        requests = {
            "eval_strategy": self.training_arguments.eval_strategy != "no",
            "eval_steps": "eval_steps" in self.arguments and "eval_strategy" not in self.arguments,
            "eval_on_start": self.training_arguments.eval_on_start,
        }
        return next((f"arguments.{name}" for name, is_set in requests.items() if is_set), None)

    @property
    def evaluates_in_between(self) -> bool:
        """Whether evaluations are made during the training, not only before and after it."""
        return self.evaluation_param not in (None, "arguments.eval_on_start")

    @property
    def eval_every_steps(self) -> int | None:
        """Number of steps between two evaluations; None if there are none, or if they follow epochs."""
        arguments = self.training_arguments
        if not self.evaluates_in_between or arguments.eval_strategy == "epoch":
            return None
        if arguments.eval_strategy == "steps":
            return arguments.eval_steps or arguments.logging_steps  # as in transformers
        return arguments.eval_steps or self.checkpoint.every_steps  # transformers would evaluate only at the end

    @property
    def eval_metrics(self) -> tuple[str, ...] | None:
        """The metrics of an evaluation; None if only the user's module knows them."""
        if self.task_info is not None:
            found: tuple[str, ...] = ("loss", *self.task_info.metrics)
        else:
            recipe = None if self.module is None else recipe_name(self.module)
            if recipe is None:
                return None
            found = RECIPE_METRICS[recipe]
        return tuple(f"{PREFIX}{name}" for name in found)

    @property
    def task_info(self) -> TrainingTask | None:
        """Description of the task; None with `trainer: torch`."""
        return None if self.task is None else TRAINING_TASKS[self.task]

    def columns(self) -> dict[str, str]:
        """Return the user's column of each input; with `trainer: torch`, only of the inputs that the spec names."""
        mapped = {} if self.data is None else self.data.columns
        task = self.task_info
        names = tuple(mapped) if task is None else (*task.inputs, *task.optional)
        return read_columns(names, mapped)

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Inputs that a row may omit."""
        return frozenset() if self.task_info is None else frozenset(self.task_info.optional)
