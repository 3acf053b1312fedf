"""Chats about images: their image parts are opened like the images of rows, and never loaded by a processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.media import is_data_url, media_value
from worker.models.media.open_media import open_media

_SOURCES = ("image", "url", "path", "base64", "image_url")
"""The keys under which chat templates and OpenAI's requests give the location of an image."""
_KINDS = ("image", "image_url")
"""The types of parts that are images."""
_INPUT = "input 'image'"
"""How `open_media` begins its messages; a chat names the part instead."""

_NONE = object()


def open_chat(messages: list[Any], image: Any, rules: AccessRules) -> list[dict[str, Any]] | RowError:
    """Open the images of a chat that is about a row's image.

    Args:
        messages: The messages from the row.
        image: The row's own opened image; it replaces each part `{"type": "image"}` that names no other.
        rules: Access rules; see `open_media`.

    Returns:
        The chat with opened images, or a row error.
    """
    opened = open_messages(messages, rules, image=image)
    if not isinstance(opened, RowError) and not images_of(opened):
        return _wrong('none of the chat\'s parts is {"type": "image"}, which stands for the row\'s image')
    return opened


def open_messages(
    messages: Sequence[Any], rules: AccessRules, *, image: Any = _NONE
) -> list[dict[str, Any]] | RowError:
    """Open the images of a chat.

    Args:
        messages: The messages from the row.
        rules: Access rules; see `open_media`.
        image: The image of parts that name none.

    Returns:
        The chat, in which each message's content is a list of parts, with opened images; or a row error.
    """
    opened = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return _wrong(f"{place}: must be an object with 'role' and 'content'")
        parts = message.get("content")
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        if not isinstance(parts, list) or not parts:
            return _wrong(f"{place}.content: must be a text or a list of parts")
        found = []
        for index, part in enumerate(parts):
            one = _part(f"{place}.content[{index}]", part, image, rules)
            if isinstance(one, RowError):
                return one
            found.append(one)
        opened.append({**message, "content": found})
    return opened


def images_of(chat: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The opened images of a chat, in order."""
    return [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]


def has_images(messages: Sequence[Any]) -> bool:
    """Whether a chat from a row has image parts."""
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return any(isinstance(part, Mapping) and part.get("type") in _KINDS for part in parts)


def without_images(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chat from a row, with `{"type": "image"}` in place of each image part."""
    return [{**message, "content": _parts_without_images(message["content"])} for message in messages]


def _parts_without_images(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "image"} if part["type"] in _KINDS else part for part in content]


def _part(place: str, part: Any, image: Any, rules: AccessRules) -> dict[str, Any] | RowError:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in _KINDS:
        return _wrong(f"{place}: must be a part of the type 'text' or 'image'")
    named = [(name, part[name]) for name in _SOURCES if part.get(name) is not None]
    if len(named) > 1:
        return _wrong(f"{place}: names more than one image")
    if not named:
        return _wrong(f"{place}: names no image") if image is _NONE else {"type": "image", "image": image}
    [(key, source)] = named
    source = _source(key, source)
    found = source if isinstance(source, RowError) else open_media("image", source, rules)
    if isinstance(found, RowError):
        reason = found.message.removeprefix(_INPUT).removeprefix(":").lstrip()
        return RowError(found.code, f"{place}: {reason}")
    return {"type": "image", "image": found}


def _source(key: str, value: Any) -> Any:
    """What `open_media` gets for an image that a part names with one of the `_SOURCES`."""
    if isinstance(value, Mapping) and "url" in value:  # OpenAI's form
        key, value = "url", value["url"]
    if isinstance(value, str):
        if key in ("url", "image_url") and not is_data_url(value):  # it must not become a path
            return RowError(RowErrorCode.URL_NOT_ALLOWED, f"{_INPUT}: a URL must be a data: URL; name files by 'path'")
        if key == "base64" and not is_data_url(value):
            value = f"data:;base64,{value}"
    return media_value("image", value)


def _wrong(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_MESSAGES, reason)
