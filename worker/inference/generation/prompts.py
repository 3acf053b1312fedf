"""Make the prompt of a row, which holds a text, the messages of a chat, or token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.messages import one_line
from jobs.specs.parameters.generation import TextGenerationParameters
from worker.inference.generation.images.image_chats import has_images
from worker.inference.generation.images.prompt_images import Prompt, PromptImages
from worker.models.task_model import Encoded
from worker.models.texts.limits import Limits
from worker.models.texts.tokens import Tokens

Message = Mapping[str, Any]

_UNBOUNDED = Limits(None, None)
TEXTS_ONLY = (
    "the model takes only texts, and the messages have images; images need a vision-language model whose folder also "
    "has its preprocessor_config.json"
)
NO_TOKENS = RowError(RowErrorCode.EMPTY_ROW, "the row has no tokens")
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """The prompt of a row."""

    tokens: Prompt
    images: PromptImages | None = None


class Prompts:
    """Makes prompts of texts with a model's tokenizer. One thread uses it at a time."""

    def __init__(self, tokens: Tokens, *, no_images: str = TEXTS_ONLY) -> None:
        """
        Args:
            tokens: The model's tokens.
            no_images: The message for rows with images.
        """
        self._tokens = tokens
        self._no_images = no_images

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokens.tokenizer

    def encode(self, rows: Sequence[Row], parameters: Sequence[TextGenerationParameters]) -> list[RowPrompt | RowError]:
        """The prompt of each row.

        Args:
            rows: Rows whose `text` is a text (the tokenizer adds its special tokens), a list of messages
                `{"role", "content"}` (the model's chat template is applied), or a list of token ids, which are used
                unchanged.
            parameters: Parameters of each row; for a chat, `continue_final_message` and `chat_template_kwargs` apply.

        Returns:
            For each row its prompt, or a row error with one of the codes of `Tokens.encode`, `no_chat_template` or
            `invalid_messages`.
        """
        # All texts are encoded in one call, which also reports values that are neither a text nor a list.
        texts = iter(self._tokens.encode([row for row in rows if not _is_list(row)], _UNBOUNDED))
        return [
            _prompt(self._of_list(row, row.values["text"], own) if _is_list(row) else next(texts))
            for row, own in zip(rows, parameters, strict=True)
        ]

    def _of_list(self, row: Row, value: Sequence[Any], parameters: TextGenerationParameters) -> Encoded:
        if not value:
            return _refused(row, RowError(RowErrorCode.EMPTY_ROW, "the row's list must contain messages or token ids"))
        if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            return self._tokens.take(row, value, _UNBOUNDED)
        if not all(isinstance(one, Mapping) for one in value):
            return _refused(
                row,
                RowError(RowErrorCode.WRONG_TYPE, "text must be a text, a list of messages, or a list of token ids"),
            )
        return self._of_chat(row, value, parameters)

    def _of_chat(self, row: Row, chat: Sequence[Message], parameters: TextGenerationParameters) -> Encoded:
        if not self._tokenizer.chat_template:
            return _refused(row, no_template())
        messages: list[Message] = []
        for number, message in enumerate(chat):
            content = text_of(message)
            if not isinstance(message.get("role"), str):
                return _refused(
                    row, RowError(RowErrorCode.INVALID_MESSAGES, f"messages[{number}].role: must be a text")
                )
            if content is None and has_images([message]):
                return _refused(row, RowError(RowErrorCode.INVALID_MESSAGES, self._no_images))
            if content is None:
                reason = f"messages[{number}].content: must be a text, or a list of parts of type text"
                return _refused(row, RowError(RowErrorCode.INVALID_MESSAGES, reason))
            messages.append({**message, "content": content})
        try:
            ids = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, **template_options(messages, parameters)
            )
        except TEMPLATE_ERRORS as error:
            return _refused(row, rejected_by_template(error))
        return self._tokens.take(row, ids, _UNBOUNDED) if ids else _refused(row, NO_TOKENS)


def no_template() -> RowError:
    """The error of a chat for a model without a chat template."""
    reason = "the model has no chat template, so the row's text must be a text or token ids, not messages"
    return RowError(RowErrorCode.NO_CHAT_TEMPLATE, reason)


def is_chat(text: object) -> bool:
    """Whether a row's `text` is a list of chat messages."""
    return isinstance(text, list) and bool(text) and isinstance(text[0], Mapping)


def text_of(message: Message) -> str | None:
    """A message's content with its text parts joined, as most chat templates need it; None if it is not text."""
    content = message.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def continues_final_message(messages: Sequence[Message], parameters: TextGenerationParameters) -> bool:
    """Whether the model continues a chat's last message instead of starting an answer to it.

    As in transformers' pipeline, it continues a message of the assistant, unless `continue_final_message` is set.
    """
    continues = parameters.continue_final_message
    return bool(messages[-1].get("role") == "assistant" if continues is None else continues)


def template_options(messages: Sequence[Message], parameters: TextGenerationParameters) -> dict[str, Any]:
    """The options with which a chat template renders messages."""
    continues = continues_final_message(messages, parameters)
    own = parameters.chat_template_kwargs
    return {"add_generation_prompt": not continues, "continue_final_message": continues, **own}


def rejected_by_template(error: Exception) -> RowError:
    """The error of a chat that a chat template rejects."""
    reason = f"the model's chat template rejects the messages: {one_line(error)}"
    return RowError(RowErrorCode.INVALID_MESSAGES, reason)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_list(row: Row) -> bool:
    return isinstance(row.values.get("text"), list)


def _prompt(encoded: Encoded) -> RowPrompt | RowError:
    return encoded.error or RowPrompt(tuple(encoded.features[0]["input_ids"].tolist()))


def _refused(row: Row, error: RowError) -> Encoded:
    return Encoded(row, 0, None, error)
