"""Make the prompts of a vision-language model: its processor replaces each image of a chat by placeholder tokens."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.messages import one_line
from jobs.specs.parameters.generation import TextGenerationParameters
from worker.inference.generation.images.image_chats import has_images, images_of, open_messages
from worker.inference.generation.images.prompt_images import PER_TOKEN, PromptImages, image_id
from worker.inference.generation.prompts import (
    NO_TOKENS,
    TEMPLATE_ERRORS,
    Message,
    Prompts,
    RowPrompt,
    is_chat,
    no_template,
    rejected_by_template,
    template_options,
)
from worker.models.generation_class import rope_index_of
from worker.models.texts.tokens import Tokens

_TOKEN_NAMES = ("image_token", "video_token", "audio_token")
"""Attributes of processors that name the tokens which stand for media in a rendered chat."""
_DEFAULTS = TextGenerationParameters()
_TEXT_OUTPUTS = frozenset({"input_ids", "attention_mask"}) | PER_TOKEN


class ImagePrompts:
    """Makes prompts with a model's processor. One thread uses it at a time."""

    def __init__(
        self, tokens: Tokens, processor: Any, model: PreTrainedModel, rules: AccessRules, *, keeps_opened: bool
    ) -> None:
        """
        Args:
            tokens: The model's tokens, with the processor's tokenizer.
            processor: The model's processor.
            model: The model, or its outline.
            rules: Access rules for the images that rows name.
            keeps_opened: Whether the engine prepares the images itself, so that it needs them as they are.
        """
        self._processor = processor
        self._tokens = tokens
        self._rules = rules
        self._keeps_opened = keeps_opened
        self._texts = Prompts(tokens)
        self._rope_index = rope_index_of(model)
        self._placeholder = _placeholder(model, processor)
        names = {getattr(processor, name, None) for name in _TOKEN_NAMES}
        names.add(processor.tokenizer.convert_ids_to_tokens(self._placeholder))
        self._reserved = tuple(sorted(name for name in names if isinstance(name, str) and name))
        templates = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        self._template = templates.get("default") if isinstance(templates, dict) else templates
        self._takes_parts = self._renders_parts()

    def copied(self) -> ImagePrompts:
        """A copy for another thread, with its own tokenizer and image processor."""
        other = copy.copy(self)
        other._processor = copy.deepcopy(self._processor)
        other._tokens = copy.copy(self._tokens)
        other._tokens.tokenizer = other._processor.tokenizer
        other._texts = Prompts(other._tokens)
        return other

    def encode(self, rows: Sequence[Row], parameters: Sequence[TextGenerationParameters]) -> list[RowPrompt | RowError]:
        """The prompt of each row.

        Args:
            rows: Rows as for `Prompts`. The parts of a message may also be images.
            parameters: Parameters of each row.

        Returns:
            For each row its prompt or a row error, as for `Prompts` and `open_media`.
        """
        return [self._encoded(row, own) for row, own in zip(rows, parameters, strict=True)]

    def _encoded(self, row: Row, parameters: TextGenerationParameters) -> RowPrompt | RowError:
        value = row.values.get("text")
        if isinstance(value, list) and is_chat(value) and (self._takes_parts or has_images(value)):
            return self._of_chat(value, parameters)
        [prompt] = self._texts.encode([row], [parameters])
        if not isinstance(prompt, RowError) and self._placeholder in prompt.tokens:
            return self._reserved_error()
        return prompt

    def _of_chat(self, messages: Sequence[Message], parameters: TextGenerationParameters) -> RowPrompt | RowError:
        if not self._template:
            return no_template()
        opened = open_messages(messages, self._rules)
        if isinstance(opened, RowError):
            return opened
        parts = [part for message in opened for part in message["content"]]
        if any(name in part.get("text", "") for part in parts for name in self._reserved):
            return self._reserved_error()
        images = images_of(opened)
        try:
            text = self._rendered(opened, parameters)
        except TEMPLATE_ERRORS as error:
            return rejected_by_template(error)
        num_places = text.count(self._image_token)
        if num_places != len(images):
            refusal = f"the model's chat template has places for {num_places} of the messages' images ({len(images)})"
            return RowError(RowErrorCode.INVALID_MESSAGES, refusal)
        # As the processor's own `apply_chat_template` does it.
        bos_token = self._tokens.tokenizer.bos_token
        adds_special = not (bos_token and text.startswith(bos_token))
        return self._of_text(text, images, adds_special=adds_special)

    def _rendered(self, opened: Sequence[Message], parameters: TextGenerationParameters) -> str:
        """A chat as a text. The template gets no image, so that it can print none."""
        shown = [{**message, "content": [_without_image(part) for part in message["content"]]} for message in opened]
        text: str = self._tokens.tokenizer.apply_chat_template(
            shown, chat_template=self._template, tokenize=False, **template_options(shown, parameters)
        )
        return text

    def _renders_parts(self) -> bool:
        """Whether the template reads the parts of a content; otherwise it would print the list as a text."""
        if not self._template:
            return False
        try:
            text = self._rendered([{"role": "user", "content": [{"type": "text", "text": "abc"}]}], _DEFAULTS)
        except TEMPLATE_ERRORS:
            return False
        return "abc" in text and "'type'" not in text

    def _of_text(self, text: str, images: list[Any], *, adds_special: bool) -> RowPrompt | RowError:
        try:
            found = self._processor(
                text=[text],
                images=[images] if images else None,
                add_special_tokens=adds_special,
                return_tensors="pt",
            )
        except (UnicodeError, TypeError, ValueError) as error:
            refusal = f"the model's processor rejects the messages: {one_line(error)}"
            return RowError(RowErrorCode.INVALID_MESSAGES, refusal)
        ids = found["input_ids"][0]
        is_image = ids == self._placeholder
        texts_only = ids[~is_image]
        num_ids = self._tokens.num_ids
        if num_ids is not None and texts_only.numel() and int(texts_only.max()) >= num_ids:
            reason = "the processor has a token for this chat that the model does not have"
            return RowError(RowErrorCode.UNKNOWN_TOKEN, reason)
        if not ids.numel():
            return NO_TOKENS
        if not images:
            return RowPrompt(tuple(ids.tolist()))
        inputs = {
            name: value
            for name, value in found.items()
            if name not in _TEXT_OUTPUTS and isinstance(value, torch.Tensor)
        }
        positions, shift = self._positions(found)
        opened: tuple[Any, ...] = ()
        unexpanded: tuple[int, ...] = ()
        if self._keeps_opened:
            opened = tuple(images)
            unexpanded = tuple(self._tokens.tokenizer(text, add_special_tokens=adds_special)["input_ids"])
        own = PromptImages(
            placeholder=self._placeholder,
            inputs={} if self._keeps_opened else inputs,
            per_token={name: found[name][0] for name in PER_TOKEN & found.keys()},
            positions=positions,
            shift=shift,
            opened=opened,
            unexpanded=unexpanded,
        )
        identity = image_id(inputs)
        return RowPrompt(tuple(identity if token == self._placeholder else token for token in ids.tolist()), own)

    def _positions(self, found: Any) -> tuple[torch.Tensor | None, int]:
        """Positions in time, height and width, (3, T), and what is added to the number of each later token."""
        if self._rope_index is None:
            return None, 0
        accepted = inspect.signature(self._rope_index).parameters
        positions, shifts = self._rope_index(**{name: value for name, value in found.items() if name in accepted})
        return positions[:, 0], int(shifts.flatten()[0])

    @property
    def _image_token(self) -> str:
        """The token that stands for a whole image in a rendered chat."""
        name = getattr(self._processor, "image_token", None)
        return name if isinstance(name, str) else self._processor.tokenizer.convert_ids_to_tokens(self._placeholder)

    def _reserved_error(self) -> RowError:
        names = " or ".join(f"'{name}'" for name in self._reserved)
        refusal = f"the row must not contain {names}, which stands for media in prompts; add an image part instead"
        return RowError(RowErrorCode.INVALID_MESSAGES, refusal)


def _placeholder(model: PreTrainedModel, processor: Any) -> int:
    """The token that stands for a part of an image in a model's input."""
    for owner, name in ((model.config, "image_token_id"), (model.config, "image_token_index")):
        found = getattr(owner, name, None)
        if isinstance(found, int):
            return found
    return int(processor.image_token_id)


def _without_image(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else part


PromptMaker = Prompts | ImagePrompts
