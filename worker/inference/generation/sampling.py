"""Choose the next token: greedily, or sampled with noise that depends on the row and not on its batch.

Sampling uses the Gumbel-max trick: the largest of the scores left after temperature, `top_k` and `top_p`, plus noise
-log(-log(u)), is a sample from their softmax. Each u belongs to one token of the vocabulary at one step of one
continuation of one row. It is output number `token` of the SplitMix64 generator (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", 2014) whose state is output number `step` of another one, whose state is a hash of

- the seed and the number of the continuation, if the row itself sets a seed (like OpenAI's `seed`: equal requests with
  equal seeds get equal texts, at any position in the input);
- otherwise the job's seed (default 0), the row's index in the input and the number of the continuation.

This is integer arithmetic, the same on every device. So a row's text does not depend on the other rows of its batch, on
its position among them, or on restarts. The only exception: if two noisy scores differ by less than the model's
rounding errors, another batch shape may change the choice.

Shapes: B rows of a batch, S sampled rows among them, V tokens of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.specs.parameters.generation import TextGenerationParameters

_GAMMA = 0x9E3779B97F4A7C15
_MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_WORD = 2**64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row's tokens are chosen. The steps have transformers' order: penalty, temperature, top_k, top_p."""

    temperature: float = 0.0
    """Temperature; 0 always chooses the likeliest token."""
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    own_seed: bool = False
    """Whether the row itself sets the seed, so that its position in the input does not matter."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0.0

    def key(self, row_index: int, choice: int) -> int:
        """The 64-bit key from which the noise of one continuation of a row is derived."""
        place = "" if self.own_seed else row_index
        digest = hashlib.blake2b(f"{self.seed}/{place}/{choice}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def resolve_sampling(parameters: TextGenerationParameters, defaults: Mapping[str, Any], *, own_seed: bool) -> Sampling:
    """How tokens are chosen with the given parameters.

    Decoding is greedy unless `do_sample` is true or `temperature` is above 0; `do_sample` in the model's own
    generation_config.json is ignored. Its other values are the defaults of parameters that are not set.

    Args:
        parameters: The row's parameters merged over the job's.
        defaults: Values that the model's generation_config.json sets.
        own_seed: Whether the row sets the seed.
    """

    def value(name: str, otherwise: Any) -> Any:
        given = getattr(parameters, name)
        if given is None:
            given = defaults.get(name)
        return otherwise if given is None else given

    draws = parameters.temperature is not None if parameters.do_sample is None else parameters.do_sample
    return Sampling(
        temperature=float(value("temperature", 1.0)) if draws else 0.0,
        top_k=value("top_k", None) or None,
        top_p=float(value("top_p", 1.0)),
        repetition_penalty=float(value("repetition_penalty", 1.0)),
        seed=parameters.seed,
        own_seed=own_seed,
    )


def choose(
    logits_BV: torch.Tensor, samplings: Sequence[Sampling], keys: Sequence[int], steps: Sequence[int]
) -> torch.Tensor:
    """The next token of each row, (B,) int64.

    Args:
        logits_BV: Logits in float32, after `penalize`.
        samplings: How each row's tokens are chosen.
        keys: The key of each row, from `Sampling.key`.
        steps: Number of tokens that each row has so far.
    """
    tokens_B = logits_BV.argmax(dim=-1)
    drawn = [place for place, sampling in enumerate(samplings) if not sampling.is_greedy]
    if not drawn:
        return tokens_B
    scores_SV = logits_BV[drawn].double()
    scores_SV -= scores_SV.amax(dim=-1, keepdim=True)  # the best score is 0, which stays finite with any temperature
    drawing = [samplings[place] for place in drawn]
    scores_SV /= scores_SV.new_tensor([sampling.temperature for sampling in drawing])[:, None]
    scores_SV = _keep_top_p(_keep_top_k(scores_SV, drawing), drawing)
    states_S = [splitmix(keys[place] + steps[place] * _GAMMA) for place in drawn]
    tokens_B[drawn] = (scores_SV + gumbel(states_S, scores_SV)).argmax(dim=-1)
    return tokens_B


def penalize(logits_BV: torch.Tensor, samplings: Sequence[Sampling], seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """Apply each row's `repetition_penalty` to the tokens that it contains so far, prompt included.

    Works like transformers' RepetitionPenaltyLogitsProcessor. Returns a copy if any row has a penalty.
    """
    penalized = [place for place, sampling in enumerate(samplings) if sampling.repetition_penalty != 1.0]
    if not penalized:
        return logits_BV
    logits_BV = logits_BV.clone()
    for place in penalized:
        tokens = torch.tensor(sorted(set(seen[place])), device=logits_BV.device)
        scores, penalty = logits_BV[place, tokens], samplings[place].repetition_penalty
        logits_BV[place, tokens] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits_BV


def _keep_top_k(scores_SV: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    num_tokens = scores_SV.shape[-1]
    kept = [min(sampling.top_k or num_tokens, num_tokens) for sampling in samplings]
    most = max((k for k in kept if k < num_tokens), default=0)
    if not most:
        return scores_SV
    best = scores_SV.topk(most, dim=-1).values
    place = torch.tensor([min(k, most) - 1 for k in kept], device=scores_SV.device)[:, None]
    is_cut = torch.tensor([k < num_tokens for k in kept], device=scores_SV.device)[:, None]
    return scores_SV.masked_fill(is_cut & (scores_SV < best.gather(-1, place)), -torch.inf)


def _keep_top_p(scores_SV: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least `top_p`."""
    if all(sampling.top_p >= 1.0 for sampling in samplings):
        return scores_SV
    top_p = scores_SV.new_tensor([sampling.top_p for sampling in samplings])[:, None]
    ascending, order = scores_SV.sort(dim=-1, stable=True)
    is_cut = (ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p) & (top_p < 1.0)
    is_cut[:, -1] = False
    return scores_SV.masked_fill(torch.zeros_like(is_cut).scatter(-1, order, is_cut), -torch.inf)


# -- noise -----------------------------------------------------------------------------------------------------------


def splitmix(state: int) -> int:
    """The output of SplitMix64 for a state, in Python."""
    mixed = (state + _GAMMA) % _WORD
    for shift, factor in _MIXERS:
        mixed = ((mixed ^ (mixed >> shift)) * factor) % _WORD
    return mixed ^ (mixed >> _LAST_SHIFT)


def gumbel(states_S: Sequence[int], like_SV: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for every token, (S, V) float64; u is output number `token` of SplitMix64 from each row's state."""
    device, num_tokens = like_SV.device, like_SV.shape[-1]
    start_S1 = torch.tensor([_signed(state) for state in states_S], device=device)[:, None]
    mixed_SV = start_S1 + (torch.arange(num_tokens, device=device) + 1) * _signed(_GAMMA)
    for shift, factor in _MIXERS:
        mixed_SV = (mixed_SV ^ _shifted(mixed_SV, shift)) * _signed(factor)
    mixed_SV ^= _shifted(mixed_SV, _LAST_SHIFT)
    uniform_SV = (_shifted(mixed_SV, 11).double() + 0.5) * 2.0**-53  # inside (0, 1), without 0 and 1
    noise_SV: torch.Tensor = -torch.log(-torch.log(uniform_SV))
    return noise_SV


def _shifted(word: torch.Tensor, shift: int) -> torch.Tensor:
    """A logical shift to the right; torch's operator repeats the sign bit."""
    logical: torch.Tensor = (word >> shift) & (2 ** (64 - shift) - 1)
    return logical


def _signed(word: int) -> int:
    """The same 64 bits as a signed integer, for torch's int64, whose sums and products wrap around as in SplitMix64."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word
