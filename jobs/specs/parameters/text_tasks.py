"""Parameters of the tasks that read text: embeddings, classes, entities, masked words, answers from tables."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.specs.parameters.task_parameters import LabelParameters, OpenParameters, TaskParameters, refused
from jobs.specs.settable import Expected
from jobs.specs.value_types import (
    BoundedText,
    BoundedTexts,
    Count,
    CountOrZero,
    Flag,
    Hypothesis,
    NamedValues,
    NumTokens,
    Padding,
    ScoreFunction,
    Text,
    Truncation,
)

Pooling = Annotated[Literal["mean", "cls", "last_token", "max"], Expected("one of mean, cls, last_token, max")]
"""How the vectors of a row's tokens become one."""
Inputs = Annotated[Literal["text", "any"], Expected("'text', or 'any' for rows of a text, texts or token ids")]
Aggregation = Annotated[
    Literal["none", "simple", "first", "average", "max"], Expected("one of none, simple, first, average, max")
]
TopLabels = Annotated[Count, Expected("a whole number from 1, or null for all labels")]
IgnoredLabels = Annotated[BoundedTexts, Expected("a list of labels")]
Targets = Annotated[BoundedText | Annotated[BoundedTexts, Field(min_length=1)], Expected("a word or a list of words")]


class EmbeddingsParameters(TaskParameters):
    """Parameters of `embeddings`."""

    TASK: ClassVar[str] = "embeddings"

    pooling: Pooling | None = None
    """How the vectors of a row's tokens become one; the model's own way when absent."""
    normalize: Flag | None = None
    """Whether each vector is scaled to length 1; the model's own way when absent."""
    dimensions: Count | None = None
    """Number of dimensions that are kept of each vector; all when absent."""
    max_length: NumTokens | None = None
    """Tokens that a row may have; the model's own limit when absent."""
    truncate: Flag = True
    """Whether a longer row is cut; otherwise it is a row error."""
    prompt: Text | None = None
    """Text that is put before each row's."""
    prompt_name: Annotated[BoundedText, Expected("the name of one of the model's prompts")] | None = None
    """Name of the model's prompt that is put before each row; the model's default when absent."""
    inputs: Inputs = "text"
    """Whether a row holds one text, or may hold several texts or lists of token ids."""


class TokenizerParameters(TaskParameters):
    """Parameters of a tokenizer, which several tasks take."""

    truncation: Truncation | None = None
    """Whether and how a row that is too long is cut; uncut ones are row errors."""
    max_length: NumTokens | None = None
    """Tokens that a row may have; the model's own limit when absent."""
    padding: Padding | None = None
    """Accepted for the sake of calls of pipelines; it has no effect."""


class TextClassificationParameters(TokenizerParameters):
    """Parameters of `text-classification`."""

    TASK: ClassVar[str] = "text-classification"
    NULLS: ClassVar[frozenset[str]] = frozenset({"top_k"})

    top_k: TopLabels | None = 1
    """Number of best labels in each output; null for all."""
    function_to_apply: ScoreFunction | None = None
    """What makes scores of the logits; as the model's kind asks for when absent."""
    inputs: Inputs = "text"
    """Whether a row holds one text, or may hold several texts or lists of token ids."""


class TokenClassificationParameters(TokenizerParameters):
    """Parameters of `token-classification`."""

    TASK: ClassVar[str] = "token-classification"

    aggregation_strategy: Aggregation = "none"
    """How tokens become entities."""
    ignore_labels: IgnoredLabels | None = None
    """Labels that are left out of the output; `["O"]` when absent."""
    stride: CountOrZero | None = None
    """Tokens that the windows of a long row share; without it a long row is not cut into windows."""
    is_split_into_words: Flag = False
    """Whether a row's text is a list of words."""
    delimiter: Text = " "
    """Text between the words of a row that is a list of words."""

    @model_validator(mode="after")
    def _go_together(self) -> TokenClassificationParameters:
        if self.stride is not None and self.aggregation_strategy == "none":
            raise refused("stride", "goes with an aggregation_strategy other than none")
        if "delimiter" in self.model_fields_set and not self.is_split_into_words:
            raise refused("delimiter", "stands between words, so it goes with is_split_into_words")
        return self


class FillMaskParameters(TokenizerParameters):
    """Parameters of `fill-mask`."""

    TASK: ClassVar[str] = "fill-mask"

    top_k: Count = 5
    """Number of proposed words for each mask."""
    targets: Targets | None = None
    """The only words to propose; every word of the vocabulary when absent."""
    tokenizer_kwargs: (
        Annotated[TokenizerParameters, Expected("a mapping of truncation, max_length, padding to their values")] | None
    ) = None
    """The tokenizer's parameters as the pipeline takes them; they precede those beside it."""

    @property
    def tokenizer(self) -> TokenizerParameters:
        """Return the tokenizer's parameters from the fields and from `tokenizer_kwargs`, which takes precedence."""
        return self if self.tokenizer_kwargs is None else self.model_copy(update=self.tokenizer_kwargs.given())


class FeatureExtractionParameters(OpenParameters):
    """Parameters of `feature-extraction`, beside those of its pipeline."""

    TASK: ClassVar[str] = "feature-extraction"

    truncation: Truncation | None = None
    """Whether and how a row that is too long is cut."""
    tokenize_kwargs: NamedValues | None = None
    """Further arguments of the tokenizer."""

    @model_validator(mode="after")
    def _go_together(self) -> FeatureExtractionParameters:
        self.refuse_pair("truncation", "tokenize_kwargs.truncation")
        self.refuse_inner("tokenize_kwargs", frozenset({"return_tensors", "text"}))
        return self


class ZeroShotClassificationParameters(LabelParameters):
    """Parameters of `zero-shot-classification`."""

    TASK: ClassVar[str] = "zero-shot-classification"

    hypothesis_template: Hypothesis | None = None
    """Sentence that is made of each label; `This example is {}.` when absent."""
    multi_label: Flag | None = None
    """Whether several labels can be true of a row, so that their scores do not sum to 1; false when absent."""


class TableQuestionAnsweringParameters(TaskParameters):
    """Parameters of `table-question-answering`."""

    TASK: ClassVar[str] = "table-question-answering"

    sequential: Flag | None = None
    """Whether the questions of a row build on each other's answers; false when absent."""
    padding: Padding | None = None
    """How the tokenizer pads; the pipeline's own way when absent."""
    truncation: (
        Annotated[
            bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate", "drop_rows_to_fit"],
            Expected("true, false, drop_rows_to_fit or one of longest_first, only_first, only_second, do_not_truncate"),
        ]
        | None
    ) = None
    """How a table that is too long is cut; the pipeline's own way when absent."""


class DecisionParameters(TaskParameters):
    """`decision` has no parameters."""

    TASK: ClassVar[str] = "decision"
