"""Chats about images: their image parts are opened like the images of rows, and never loaded by a processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from worker.models.media import open_media

_SOURCES = ("image", "url", "path", "base64", "image_url")
"""The keys under which chat templates and OpenAI's requests give the location of an image."""


def open_chat(messages: list[Any], image: Any, rules: AccessRules) -> list[dict[str, Any]] | RowError:
    """Open the images of a chat.

    Args:
        messages: The messages from the row.
        image: The row's own opened image; it replaces each part `{"type": "image"}` that names no other.
        rules: Access rules; see `open_media`.

    Returns:
        The chat with opened images, or a row error.
    """
    opened = []
    num_images = 0
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return _wrong("each message must be an object with 'role' and 'content'")
        parts = message.get("content")
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        if not isinstance(parts, list) or not parts:
            return _wrong("a message's 'content' must be a text or a list of parts")
        found = [_part(part, image, rules) for part in parts]
        for part in found:
            if isinstance(part, RowError):
                return part
        num_images += sum(part["type"] == "image" for part in found)
        opened.append({"role": message["role"], "content": found})
    if not num_images:
        return _wrong('none of its parts is {"type": "image"}, where the row\'s image belongs')
    return opened


def _part(part: Any, image: Any, rules: AccessRules) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url"):
        return _wrong("the parts of a message are of the types 'text' and 'image'")
    named = [part[name] for name in _SOURCES if part.get(name) is not None]
    if len(named) > 1:
        return _wrong("an image part names more than one image")
    source = named[0] if named else image
    if isinstance(source, Mapping) and "url" in source:  # OpenAI's form
        source = source["url"]
    found = source if source is image else open_media("image", source, rules)
    return found if isinstance(found, RowError) else {"type": "image", "image": found}


def _wrong(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_MESSAGES, f"input 'text' is not a chat about an image: {reason}")
