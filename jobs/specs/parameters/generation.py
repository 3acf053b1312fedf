"""Parameters of the tasks that generate text, from text, images, audio or video."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from jobs.specs.bounds import MOST_OPTIONS
from jobs.specs.parameters.task_parameters import OpenParameters, TaskParameters
from jobs.specs.settable import Expected
from jobs.specs.value_types import (
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
        raise ValueError("these are arguments of the call, not variables of the template")
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
    """Most tokens to generate; as the model's generation_config.json says when absent, or 256."""
    do_sample: Flag | None = None
    """Whether tokens are drawn instead of always taking the likeliest; true where a temperature is set."""
    temperature: NumberFromZero | None = None
    """How evenly tokens are drawn; 0 always takes the likeliest."""
    top_p: ShareAboveZero | None = None
    """Draw only from the likeliest tokens whose probabilities reach this sum."""
    top_k: Count | None = None
    """Draw only from this many likeliest tokens."""
    repetition_penalty: NumberAboveZero | None = None
    """Factor above 1 that makes tokens of the row so far less likely."""
    seed: Seed = 0
    """Seed of what is drawn; set in a row, the draw does not depend on the row's place."""
    stop: Stops = Field(default_factory=list)
    """Texts that end the generation; the output is cut before them."""
    stop_strings: Stops | None = None
    """transformers' name of `stop`."""
    n: Choices = 1
    """Continuations of each row."""
    num_return_sequences: Choices | None = None
    """transformers' name of `n`."""
    logprobs: Flag = False
    """Whether the output has the log-probability of each token."""
    top_logprobs: TopLogprobs = 0
    """Likeliest tokens listed with each token; above 0 it implies `logprobs`."""
    return_full_text: Flag = False
    """Whether the output begins with the prompt."""
    continue_final_message: Flag | None = None
    """Whether a chat's last message is continued; when absent, one of the assistant's is."""
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
    """Parameters of the tasks that generate text from more than texts, beside those of pipeline and model."""

    max_new_tokens: Count | None = None
    """Most tokens to generate; as the model's generation_config.json says when absent."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""
    processor_kwargs: NamedValues | None = None
    """Further arguments of the model's processor."""
    return_full_text: Flag | None = None
    """Whether the output begins with the prompt."""
    continue_final_message: Flag | None = None
    """Whether a chat's last message is continued; when absent, one of the assistant's is."""
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
    """Parameters of `image-text-to-text`, beside those of its pipeline and model."""

    TASK: ClassVar[str] = "image-text-to-text"


class AnyToAnyParameters(MultimodalParameters):
    """Parameters of `any-to-any`, beside those of its pipeline and model."""

    TASK: ClassVar[str] = "any-to-any"
