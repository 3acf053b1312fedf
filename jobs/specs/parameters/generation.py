"""Parameters of the tasks that generate text, from text, images, audio or video."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from jobs.specs.bounds import MOST_OPTIONS
from jobs.specs.parameters.task_parameters import OpenParameters, TaskParameters
from jobs.specs.training_options.settable import Expected
from jobs.specs.training_options.value_types import (
    Count,
    Flag,
    NamedValues,
    NumberAboveZero,
    NumberFromZero,
    Seed,
    ShareAboveZero,
    Stops,
    Text,
)

MOST_CHOICES = 128
"""The most continuations of one row."""
MOST_TOP_LOGPROBS = 20
"""The most alternatives that are reported for each generated token."""
FALLBACK_NEW_TOKENS = 256
"""Value of `max_new_tokens` if neither the job nor the model's generation_config.json sets it."""
NO_TEMPLATE_VARIABLES = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
        "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "self",
        "tokenize", "tokenizer_kwargs", "truncation",
    }
)  # fmt: skip
"""Arguments that `apply_chat_template` does not pass to the template, or that must not be replaced there."""
_SAME = {"num_return_sequences": "n", "stop_strings": "stop"}
"""transformers' name of a parameter -> OpenAI's name."""

Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES), Expected(f"a whole number from 1 to {MOST_CHOICES}")]
TopLogprobs = Annotated[
    int, Field(ge=0, le=MOST_TOP_LOGPROBS), Expected(f"a whole number from 0 to {MOST_TOP_LOGPROBS}")
]


def _check_variables(value: dict[str, Any]) -> dict[str, Any]:
    if value.keys() & NO_TEMPLATE_VARIABLES:
        raise ValueError("contains arguments of apply_chat_template, which are not variables of the template")
    return value


TemplateVariables = Annotated[
    dict[str, Any],
    Field(max_length=MOST_OPTIONS),
    AfterValidator(_check_variables),
    Expected("a mapping of the chat template's own variables to their values"),
]


class TextGenerationParameters(TaskParameters):
    """Parameters of `text-generation`, of a job or of one row."""

    TASK: ClassVar[str] = "text-generation"

    max_new_tokens: Count | None = None
    """Maximum number of tokens to generate. When absent, the value in the model's generation_config.json, else 256."""
    do_sample: Flag | None = None
    """Whether tokens are sampled instead of always choosing the most likely one; by default only with a temperature."""
    temperature: NumberFromZero | None = None
    """Sampling temperature; 0 always chooses the most likely token."""
    top_p: ShareAboveZero | None = None
    """Sample only from the most likely tokens whose probabilities add up to this value."""
    top_k: Count | None = None
    """Sample only from this number of most likely tokens."""
    repetition_penalty: NumberAboveZero | None = None
    """Penalty for tokens that the row already contains; a factor above 1 makes them less likely."""
    seed: Seed = 0
    """Seed of the sampling. If a row sets it, the row's result does not depend on its position in the input."""
    stop: Stops = Field(default_factory=list)
    """Texts that end the generation. The output is cut before them."""
    stop_strings: Stops | None = None
    """transformers' name of `stop`."""
    n: Choices = 1
    """Number of continuations of each row."""
    num_return_sequences: Choices | None = None
    """transformers' name of `n`."""
    logprobs: Flag = False
    """Whether the output has the log-probability of each token."""
    top_logprobs: TopLogprobs = 0
    """Number of most likely tokens listed with each token; a number above 0 implies `logprobs`."""
    return_full_text: Flag = False
    """Whether the output begins with the prompt."""
    continue_final_message: Flag | None = None
    """Whether to continue a chat's last message; by default only a message of the assistant is continued."""
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    """Variables for the model's chat template."""

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, given: Any) -> Any:
        """Set `n` and `stop` from either of their names; if both are given, the later one counts."""
        if not isinstance(given, dict):
            return given
        last = {_SAME.get(name, name): value for name, value in given.items() if value is not None}
        return {**given, **{name: last[name] for name in _SAME.values() if name in last}}

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple of texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def with_row(self, own: TextGenerationParameters) -> TextGenerationParameters:
        """Return the job's parameters, overridden by those that a row sets."""
        return self.model_copy(update=own.given()) if own.model_fields_set else self


class MultimodalParameters(OpenParameters):
    """Parameters of the tasks that generate text from other media. The pipeline and the model accept more."""

    max_new_tokens: Count | None = None
    """Maximum number of tokens to generate. When absent, the value in the model's generation_config.json."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""
    processor_kwargs: NamedValues | None = None
    """Further arguments of the model's processor."""
    return_full_text: Flag | None = None
    """Whether the output begins with the prompt."""
    continue_final_message: Flag | None = None
    """Whether to continue a chat's last message; by default only a message of the assistant is continued."""
    skip_special_tokens: Flag | None = None
    """Whether special tokens are left out of the output."""
    stop_sequence: Text | None = None
    """Text whose first token ends the generation."""

    @model_validator(mode="after")
    def _go_together(self) -> MultimodalParameters:
        self.refuse_pair("max_new_tokens", "generate_kwargs.max_new_tokens")
        self.refuse_pair("return_full_text", "return_tensors")
        self.refuse_inner("processor_kwargs", frozenset({"return_tensors", "text", "images", "videos", "audio"}))
        return self


class ImageTextToTextParameters(MultimodalParameters):
    """Parameters of `image-text-to-text`. The pipeline and the model accept more."""

    TASK: ClassVar[str] = "image-text-to-text"


class AnyToAnyParameters(MultimodalParameters):
    """Parameters of `any-to-any`. The pipeline and the model accept more."""

    TASK: ClassVar[str] = "any-to-any"
