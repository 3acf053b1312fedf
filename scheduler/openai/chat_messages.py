"""Read the messages of a chat from OpenAI's request bodies: texts, and images as `data:` URLs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.openai.line_error import LineError

MOST_IMAGES = 500
"""Most images of a request."""
MOST_IMAGE_BYTES = 20 * 10**6
"""Most bytes of an image, as in OpenAI's API."""
_ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_KEYS = ("role", "content", "name")
_IMAGE_KEYS = ("url", "detail")
_DETAILS = (None, "auto", "low", "high", "original")
_IMAGE_URL = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,", re.IGNORECASE)
_NETWORK_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages of a chat as a row has them.

    Args:
        messages: The body's `messages`.

    Raises:
        LineError: They are invalid.
    """
    if not isinstance(messages, list) or not messages:
        raise LineError("messages: must be a list with at least one message", code="invalid_value", param="messages")
    found = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    contents = (message["content"] for message in found)
    num_images = sum(part["type"] == "image" for content in contents if isinstance(content, list) for part in content)
    if num_images > MOST_IMAGES:
        message = f"messages: must have at most {MOST_IMAGES} images, not {num_images}"
        raise LineError(message, code="invalid_value", param="messages")
    return found


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise LineError(f"{place}: must be an object with role and content", code="invalid_value", param=place)
    for name, value in message.items():  # messages returned by an SDK have every key, most of them null
        if value and name not in _MESSAGE_KEYS:
            param = f"{place}.{name}"
            raise LineError(f"{param}: is not supported", code="unsupported_parameter", param=param)
    role = str(message.get("role"))
    if role not in _ROLES:
        raise LineError(
            f"{place}.role: must be one of {', '.join(_ROLES)}", code="invalid_value", param=f"{place}.role"
        )
    content = _content(message.get("content"), f"{place}.content")
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise LineError(f"{place}.name: must be a text", code="invalid_value", param=f"{place}.name")
    return {"role": _ROLES[role], "content": content} | ({} if name is None else {"name": name})


def _content(content: Any, place: str) -> str | list[dict[str, str]]:
    """The content of a message: a text, or a list of parts if it has images."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content or not all(_is_part(part) for part in content):
        reason = "must be a text, or a list of parts of type text or image_url"
        raise LineError(f"{place}: {reason}", code="invalid_value", param=place)
    parts = [_part(part, f"{place}[{number}]") for number, part in enumerate(content)]
    return "".join(part["text"] for part in parts) if _is_text(parts) else parts


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image_url" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _is_text(parts: Sequence[Mapping[str, str]]) -> bool:
    return all(part["type"] == "text" for part in parts)


def _part(part: Mapping[str, Any], place: str) -> dict[str, str]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    image, param = part.get("image_url"), f"{place}.image_url"
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise LineError(f"{param}: must be an object with url", code="invalid_value", param=param)
    for name, value in image.items():
        if value and name not in _IMAGE_KEYS:
            raise LineError(f"{param}.{name}: is not supported", code="unsupported_parameter", param=f"{param}.{name}")
    if image.get("detail") not in _DETAILS:
        message = f"{param}.detail: must be auto, low, high or original"
        raise LineError(message, code="invalid_value", param=f"{param}.detail")
    return {"type": "image", "url": _data_url(image["url"], f"{param}.url")}


def _data_url(url: str, param: str) -> str:
    if _NETWORK_URL.match(url):
        message = f"{param}: images are not fetched; put the image itself into the line, as a data: URL with base64"
        raise LineError(message, code="url_not_allowed", param=param)
    kind = _IMAGE_URL.match(url)
    if kind is None:  # any other text would be the path of a file to a worker
        message = f"{param}: must be a data: URL with base64 of the type image/png, image/jpeg, image/webp or image/gif"
        raise LineError(message, code="invalid_value", param=param)
    if (len(url) - kind.end()) * 3 // 4 > MOST_IMAGE_BYTES:
        message = f"{param}: the image must have at most {MOST_IMAGE_BYTES // 10**6} MB"
        raise LineError(message, code="invalid_value", param=param)
    return kind.group().lower() + url[kind.end() :]
