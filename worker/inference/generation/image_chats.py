"""Chats about images: their image parts are opened as the images of rows are, and never loaded by a processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from worker.models.media import open_media

_SOURCES = ("image", "url", "path", "base64", "image_url")
"""The keys under which chat templates and OpenAI's requests say where an image is."""


def open_chat(messages: list[Any], image: Any, rules: AccessRules) -> list[dict[str, Any]] | RowError:
    """A chat whose image parts hold opened images.

    Args:
        messages: as the row brings them.
        image: the row's own, opened; it takes the place of each part `{"type": "image"}` that names no other.
        rules: see `open_media`.

    Returns:
        The chat, or what is wrong with it.
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
    if isinstance(source, Mapping) and "url" in source:  # as OpenAI writes it
        source = source["url"]
    found = source if source is image else open_media("image", source, rules)
    return found if isinstance(found, RowError) else {"type": "image", "image": found}


def _wrong(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_MESSAGES, f"input 'text' is not a chat about an image: {reason}")
