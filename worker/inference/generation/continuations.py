"""What to generate for one row, and what was generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import LogitsProcessor

from worker.inference.generation.images.prompt_images import Prompt, PromptImages, model_tokens
from worker.inference.generation.sampling import Sampling

STOP, LENGTH, NOT_A_NUMBER = "stop", "length", "not_a_number"
"""Why a continuation ended; with `NOT_A_NUMBER` it has no text."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate for one row."""

    row_index: int
    prompt: Prompt
    """Token ids. Those of images are negative and follow from the images' content, see `prompt_images`."""
    max_new_tokens: int
    """Most tokens to generate, at most what fits into the model's context."""
    sampling: Sampling
    num_choices: int = 1
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end the row; they are not part of its text."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """Number of likeliest tokens returned beside each token's log-probability; None for no log-probabilities."""
    full_text: bool = False
    """Whether the result repeats the prompt."""
    continues: bool = False
    """Whether the text continues the last message of a chat."""
    images: PromptImages | None = None
    """The images of the prompt, if it has any."""

    @property
    def prompt_tokens(self) -> Prompt:
        """The prompt's tokens as the model knows them."""
        return model_tokens(self.prompt, self.images)

    @property
    def num_sequences(self) -> int:
        """Number of continuations to compute: with greedy decoding, all choices are equal."""
        return 1 if self.sampling.is_greedy else self.num_choices

    @property
    def num_tokens(self) -> int:
        """The most tokens that a continuation may have in the cache, prompt included."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before the row's sampling parameters are applied."""

    logprob: float
    """Log-probability of the chosen token."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with their log-probabilities, best first."""


@dataclass(slots=True)
class Continuation:
    """The state of one choice of a request, during generation and after it."""

    request: Request
    key: int
    constraints: tuple[LogitsProcessor, ...] = ()
    """Tokens that the model's own configuration forbids or forces."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
