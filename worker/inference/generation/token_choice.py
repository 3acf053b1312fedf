"""Choose the next token of each row from the model's logits, and find the rows that are done.

Shapes: B rows, V tokens of the vocabulary, A rows whose log-probabilities are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from worker.inference.generation.constraints import constrain
from worker.inference.generation.continuations import LENGTH, NOT_A_NUMBER, STOP, Continuation, TokenLogprobs
from worker.inference.generation.generation_engine import FindsStop
from worker.inference.generation.sampling import choose, penalize


class TokenChoice:
    """Applies each row's own sampling parameters, constraints and limits."""

    def __init__(self, finds_stop: FindsStop) -> None:
        """
        Args:
            finds_stop: Finds stop strings.
        """
        self._finds_stop = finds_stop

    def extend(self, logits_BV: torch.Tensor, rows: Sequence[Continuation]) -> None:
        """Add the next token to each row, and set the finish reason of those that are done.

        Args:
            logits_BV: The model's logits for the next token of each row, (B, V) float32.
            rows: The rows.
        """
        samplings = [one.request.sampling for one in rows]
        seen = _Seen(rows)
        allowed_BV = constrain(penalize(logits_BV, samplings, seen), [one.constraints for one in rows], seen)
        tokens_B = choose(allowed_BV, samplings, [one.key for one in rows], [len(one.tokens) for one in rows])
        self._note_logprobs(logits_BV, tokens_B, rows)
        broken = logits_BV.amax(dim=-1).isnan().tolist()
        for one, token, is_broken in zip(rows, tokens_B.tolist(), broken, strict=True):
            one.tokens.append(token)
            one.finish_reason = NOT_A_NUMBER if is_broken else self._finish_reason(one, token)

    def _finish_reason(self, one: Continuation, token: int) -> str | None:
        if token in one.request.end_tokens:
            return STOP
        if one.request.stop and self._finds_stop(one.request, one.tokens):
            return STOP
        return LENGTH if len(one.tokens) >= one.request.max_new_tokens else None

    def _note_logprobs(self, logits_BV: torch.Tensor, tokens_B: torch.Tensor, rows: Sequence[Continuation]) -> None:
        with_logprobs = [row for row, one in enumerate(rows) if one.request.top_logprobs is not None]
        if not with_logprobs:
            return
        logprobs_AV = logits_BV[with_logprobs].log_softmax(dim=-1)
        logprobs_A = logprobs_AV.gather(-1, tokens_B[with_logprobs][:, None])[:, 0].tolist()
        most = min(max(rows[row].request.top_logprobs or 0 for row in with_logprobs), logprobs_AV.shape[-1])
        best = logprobs_AV.topk(most, dim=-1)
        values, tokens = best.values.tolist(), best.indices.tolist()
        for place, row in enumerate(with_logprobs):
            count = rows[row].request.top_logprobs
            top = tuple(zip(tokens[place][:count], values[place][:count], strict=True))
            rows[row].logprobs.append(TokenLogprobs(logprobs_A[place], top))


class _Seen(Sequence[Sequence[int]]):
    """Prompt and generated tokens of each row, concatenated only when a row is accessed."""

    def __init__(self, rows: Sequence[Continuation]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        one = self._rows[row]
        return [*one.request.prompt_tokens, *one.tokens]
