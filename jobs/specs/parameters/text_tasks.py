"""Parameters of the tasks that read text: embeddings, classes, entities, masked words, answers from tables."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.specs.parameters.task_parameters import LabelParameters, OpenParameters, TaskParameters, refused
from jobs.specs.training_options.settable import Expected
from jobs.specs.training_options.value_types import (
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
"""How the vectors of a row's tokens are combined into one."""
Inputs = Annotated[
    Literal["text", "any"], Expected("'text', or 'any' for rows with a text, a list of texts or token ids")
]
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
    """How the vectors of a row's tokens are combined into one; the model's default when absent."""
    normalize: Flag | None = None
    """Whether each vector is scaled to length 1; the model's default when absent."""
    dimensions: Count | None = None
    """Number of dimensions to keep of each vector; all when absent."""
    max_length: NumTokens | None = None
    """Maximum number of tokens in a row; the model's limit when absent."""
    truncate: Flag = True
    """Whether a longer row is truncated. Otherwise it becomes a row error."""
    prompt: Text | None = None
    """Text to insert before the text of each row."""
    prompt_name: Annotated[BoundedText, Expected("the name of one of the model's prompts")] | None = None
    """Name of the model's prompt to insert before the text of each row; the model's default when absent."""
    inputs: Inputs = "text"
    """Whether a row holds one text, or may hold several texts or lists of token ids."""


class TokenizerParameters(TaskParameters):
    """Parameters of the tokenizer, which several tasks share."""

    truncation: Truncation | None = None
    """Whether and how to truncate a row that is too long. Otherwise it becomes a row error."""
    max_length: NumTokens | None = None
    """Maximum number of tokens in a row; the model's limit when absent."""
    padding: Padding | None = None
    """Accepted for compatibility with transformers' pipelines; has no effect."""


class TextClassificationParameters(TokenizerParameters):
    """Parameters of `text-classification`."""

    TASK: ClassVar[str] = "text-classification"
    NULLS: ClassVar[frozenset[str]] = frozenset({"top_k"})

    top_k: TopLabels | None = 1
    """Number of best labels in each output; null for all."""
    function_to_apply: ScoreFunction | None = None
    """Function that turns logits into scores; by default the one for the model's type of problem."""
    inputs: Inputs = "text"
    """Whether a row holds one text, or may hold several texts or lists of token ids."""


class TokenClassificationParameters(TokenizerParameters):
    """Parameters of `token-classification`."""

    TASK: ClassVar[str] = "token-classification"

    aggregation_strategy: Aggregation = "none"
    """How tokens are merged into entities."""
    ignore_labels: IgnoredLabels | None = None
    """Labels to leave out of the output; `["O"]` when absent."""
    stride: CountOrZero | None = None
    """Number of tokens that neighboring windows of a long row share; without it, a long row is not cut into windows."""
    is_split_into_words: Flag = False
    """Whether a row's text is a list of words."""
    delimiter: Text = " "
    """Text between the words of a row that is a list of words."""

    @model_validator(mode="after")
    def _go_together(self) -> TokenClassificationParameters:
        if self.stride is not None and self.aggregation_strategy == "none":
            raise refused("stride", "needs an aggregation_strategy other than none")
        if "delimiter" in self.model_fields_set and not self.is_split_into_words:
            raise refused("delimiter", "can only be used with is_split_into_words: true")
        return self


class FillMaskParameters(TokenizerParameters):
    """Parameters of `fill-mask`."""

    TASK: ClassVar[str] = "fill-mask"

    top_k: Count = 5
    """Number of words to suggest for each mask."""
    targets: Targets | None = None
    """The only words to suggest; all words of the vocabulary when absent."""
    tokenizer_kwargs: (
        Annotated[TokenizerParameters, Expected("a mapping of truncation, max_length, padding to their values")] | None
    ) = None
    """The tokenizer's parameters in the form of the pipeline; they take precedence over the fields beside it."""

    @property
    def tokenizer(self) -> TokenizerParameters:
        """Return the tokenizer's parameters from the fields and from `tokenizer_kwargs`, which takes precedence."""
        return self if self.tokenizer_kwargs is None else self.model_copy(update=self.tokenizer_kwargs.given())


class FeatureExtractionParameters(OpenParameters):
    """Parameters of `feature-extraction`. The pipeline accepts more."""

    TASK: ClassVar[str] = "feature-extraction"

    truncation: Truncation | None = None
    """Whether and how to truncate a row that is too long."""
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
    """Sentence into which each label is inserted; `This example is {}.` when absent."""
    multi_label: Flag | None = None
    """Whether several labels can apply to a row, so that their scores do not add up to 1; false when absent."""


class TableQuestionAnsweringParameters(TaskParameters):
    """Parameters of `table-question-answering`."""

    TASK: ClassVar[str] = "table-question-answering"

    sequential: Flag | None = None
    """Whether the questions of a row build on each other's answers; false when absent."""
    padding: Padding | None = None
    """How the tokenizer pads; the pipeline's default when absent."""
    truncation: (
        Annotated[
            bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate", "drop_rows_to_fit"],
            Expected("true, false, drop_rows_to_fit or one of longest_first, only_first, only_second, do_not_truncate"),
        ]
        | None
    ) = None
    """How to truncate a table that is too long; the pipeline's default when absent."""


class DecisionParameters(TaskParameters):
    """`decision` has no parameters."""

    TASK: ClassVar[str] = "decision"
