"""Render a text as the only message of a chat, for embeddings by chat models, as in sentence-transformers 6."""

from __future__ import annotations

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from jobs.data.rows import RowError, RowErrorCode
from jobs.messages import one_line

FLAT, STRUCTURED = "flat", "structured"
"""Forms of a message's content: the text itself, or a list with one part of type text."""
_FLAT_TEMPLATES = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})
"""Model types whose templates accept texts, although they look as if they accepted parts."""
_TAKES_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
"""Strings that occur in the templates of models that accept parts."""
_FILLERS = ("0", "1 2 3 4")
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def message_format(tokenizer: PreTrainedTokenizerBase, model_type: str) -> str | None:
    """The form of message content that a plain folder's chat template expects; None if it has no template."""
    template = tokenizer.chat_template
    if template is None:
        return None
    if model_type in _FLAT_TEMPLATES:
        return FLAT
    if not isinstance(template, str) or not template or any(part in template for part in _TAKES_PARTS):
        return STRUCTURED
    return FLAT


class ChatForm:
    """Renders a text as the only user message, after a prompt as system message. Not thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: str) -> None:
        """
        Args:
            tokenizer: The tokenizer with the chat template.
            form: `FLAT` or `STRUCTURED`.
        """
        self._tokenizer = tokenizer
        self._form = form
        self._ends: dict[str, tuple[int, ...]] = {}

    def render(self, text: str, prompt: str) -> str | RowError:
        """Return the text of the whole chat, to be tokenized without further special tokens."""
        messages = [self._message("user", text)]
        if prompt:
            messages.insert(0, self._message("system", prompt))
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except _TEMPLATE_ERRORS as error:
            return RowError(
                RowErrorCode.INVALID_MESSAGES, f"the model's chat template rejects the text: {one_line(error)}"
            )

    def restore_end(self, ids: np.ndarray, prompt: str) -> None:
        """Restore the template's tokens after the text in a truncated row: the last token may be the pooled one."""
        end = self._end(prompt)
        keep = min(len(end), len(ids))
        if keep:
            ids[-keep:] = end[-keep:]

    def _end(self, prompt: str) -> tuple[int, ...]:
        """The tokens with which all chats with this prompt end."""
        if prompt not in self._ends:
            self._ends[prompt] = self._find_end(prompt)
        return self._ends[prompt]

    def _find_end(self, prompt: str) -> tuple[int, ...]:
        rendered = [self.render(filler, prompt) for filler in _FILLERS]
        first, second = (
            [] if isinstance(one, RowError) else self._tokenizer(one, add_special_tokens=False)["input_ids"]
            for one in rendered
        )
        count = 0
        for one, other in zip(reversed(first), reversed(second), strict=False):
            if one != other:
                break
            count += 1
        return tuple(first[len(first) - count :]) if 0 < count < min(len(first), len(second)) else ()

    def _message(self, role: str, text: str) -> dict[str, object]:
        return {"role": role, "content": text if self._form == FLAT else [{"type": "text", "text": text}]}
