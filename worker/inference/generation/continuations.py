"""What is to be generated for one row, and what was."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import LogitsProcessor

from worker.inference.generation.sampling import Sampling

STOP, LENGTH, NOT_A_NUMBER = "stop", "length", "not_a_number"
"""Why a continuation ended; the last one has no text."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated for one row."""

    row_index: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    """What fits into the model's context, at most."""
    sampling: Sampling
    num_choices: int = 1
    end_tokens: frozenset[int] = frozenset()
    """Each of them ends the row, and is not in its text."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told with each token's log-probability; None: not even that one."""
    full_text: bool = False
    """Whether the result repeats the prompt."""
    continues: bool = False
    """Whether the text goes on with the last message of a chat."""

    @property
    def num_sequences(self) -> int:
        """Continuations to compute: without a draw, all choices are the same."""
        return 1 if self.sampling.is_greedy else self.num_choices

    @property
    def num_tokens(self) -> int:
        """The most tokens that a continuation may have in the cache, prompt included."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the probabilities that the model itself gave, before any of the row's parameters."""

    logprob: float
    """Of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first."""


@dataclass(slots=True)
class Continuation:
    """What was generated of one choice of a request."""

    request: Request
    key: int
    constraints: tuple[LogitsProcessor, ...] = ()
    """What the model's own configuration forbids or forces."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
