"""Make a row's result from its generated tokens: text cut at a stop string, log-probabilities, usage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.data.rows import Row, RowError
from worker.inference.generation.continuations import NOT_A_NUMBER, STOP, Continuation, Request
from worker.inference.generation.images.image_chats import without_images
from worker.inference.generation.images.prompt_images import model_tokens
from worker.inference.generation.prompts import text_of
from worker.models.task_model import NOT_FINITE, Counted
from worker.models.transformers_internals import bytes_of_letters

_CONTEXT_TOKENS = 6
"""Number of prompt tokens decoded with the generated ones, since some tokenizers drop the space before the first."""
_MARGIN_TOKENS = 6
"""Tokens searched for a stop string beyond its own length; the first of them may be parts of characters."""
_SMALLEST_LOGPROB = -9999.0
"""What OpenAI's API returns for a probability of 0, since JSON has no infinity."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = bytes_of_letters()


class Detokenizer:
    """Converts tokens to text and results. One thread uses it at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            tokenizer: The model's tokenizer; no other thread may use it at the same time.
        """
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = backend is not None and "ByteLevel" in str(backend.decoder)
        self._special = frozenset(tokenizer.all_special_ids)

    def text(self, request: Request, tokens: Sequence[int]) -> str:
        """The text that tokens add to a request's prompt, without the prompt and the token that ends the row."""
        if tokens and tokens[-1] in request.end_tokens:
            tokens = tokens[:-1]
        context = list(model_tokens(request.prompt[-_CONTEXT_TOKENS:], request.images))
        before, whole = self._decode(context), self._decode([*context, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._decode(tokens)

    def finds_stop(self, request: Request, tokens: Sequence[int]) -> bool:
        """Whether the newest token completes a stop string of the request."""
        longest = max(len(stop.encode(errors="replace")) for stop in request.stop)
        tail = self._decode(tokens[-longest - _MARGIN_TOKENS :])
        if not any(stop in tail for stop in request.stop):
            return False
        text = self.text(request, tokens)
        return any(stop in text for stop in request.stop)

    def output(self, row: Row, request: Request, continuations: Sequence[Continuation]) -> Counted | RowError:
        """The result of a row.

        Args:
            row: The input row; its prompt comes before the text if `request.full_text` is set.
            request: The row's request.
            continuations: What was computed for the row; with greedy decoding, the first one serves all choices.

        Returns:
            For each choice `{"generated_text", "finish_reason", "num_tokens", "logprobs"}`, and the total number of
            tokens of the choices and the prompt.
        """
        if any(one.finish_reason == NOT_A_NUMBER for one in continuations):
            return NOT_FINITE
        each = [continuations[min(index, len(continuations) - 1)] for index in range(request.num_choices)]
        choices = [self._choice(one) for one in each]
        if request.full_text:
            for choice in choices:
                choice["generated_text"] = self._after_prompt(row, request, choice["generated_text"])
        return Counted(choices, len(request.prompt) + sum(len(one.tokens) for one in each))

    def _choice(self, one: Continuation) -> dict[str, Any]:
        text = whole = self.text(one.request, one.tokens)
        if one.finish_reason == STOP:
            text = cut(whole, one.request.stop)
        logprobs = None
        if one.request.top_logprobs is not None:
            logprobs = self._logprobs(one, self._num_reported(one, text, is_cut=text != whole))
        return {
            "generated_text": text,
            "finish_reason": one.finish_reason,
            "num_tokens": len(one.tokens),
            "logprobs": logprobs,
        }

    def _after_prompt(self, row: Row, request: Request, text: str) -> str | list[Any]:
        """The prompt with the text, as the pipeline returns it: a text after its prompt, or a chat with its answer.

        The images of a chat are left out, since they may have megabytes.
        """
        prompt = row.values["text"]
        if request.images is not None:
            prompt = without_images(prompt)
        if isinstance(prompt, str):
            return prompt + text
        if isinstance(prompt[0], int):
            return self._decode(request.prompt) + text
        if request.continues:
            before = text_of(prompt[-1])
            parts = [*prompt[-1]["content"], {"type": "text", "text": text}] if before is None else before + text
            return [*prompt[:-1], {**prompt[-1], "content": parts}]
        return [*prompt, {"role": "assistant", "content": text}]

    def _num_reported(self, one: Continuation, text: str, *, is_cut: bool) -> int:
        """Number of tokens of the text, without those of a stop string and the one that ends the row."""
        count = len(one.tokens)
        if is_cut:
            while count and len(self.text(one.request, one.tokens[: count - 1])) >= len(text):
                count -= 1
        elif one.tokens[-1] in one.request.end_tokens:
            count -= 1
        return count

    def _logprobs(self, one: Continuation, count: int) -> list[dict[str, Any]]:
        return [
            {
                **self._token(token, logprobs.logprob),
                "top_logprobs": [self._token(other, logprob) for other, logprob in logprobs.top],
            }
            for token, logprobs in zip(one.tokens[:count], one.logprobs[:count], strict=True)
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        token_bytes = self._token_bytes(token)
        return {
            "token": token_bytes.decode(errors="replace"),
            "logprob": max(logprob, _SMALLEST_LOGPROB),
            "bytes": list(token_bytes),
        }

    def _token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which may be only a part of a character."""
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token in self._special:
            return piece.encode()
        if self._is_byte_level and all(letter in _BYTES for letter in piece):
            return bytes(_BYTES[letter] for letter in piece)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
