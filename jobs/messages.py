"""Helpers for error messages: pydantic's errors in words, shortened texts, first lines, and the closest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that a terminal or a browser interprets instead of showing: control characters (C0 and C1), and those that
change the direction of text, which can make one name look like another."""
LONGEST_SHOWN_CHARACTERS = 200
"""Maximum number of characters of a client's text that a message repeats."""
LONGEST_MESSAGE_CHARACTERS = 2000
"""Maximum number of characters of a whole message."""

_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "dict", "list", "constrained-int", "constrained-str"})
"""Pydantic's names for the branches of a union. They appear in the location of an error like the name of a field."""

_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "extra_forbidden": lambda _: "unknown field",
    "missing": lambda _: "is required",
    "string_type": lambda _: "must be a text",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda limits: f"must have at most {counted(limits['max_length'], 'character')}",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be a mapping of names to values",
    "model_type": lambda _: "must be a mapping of fields to values",
    "model_attributes_type": lambda _: "must be a mapping of fields to values",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a smaller number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "literal_error": lambda limits: f"must be {limits['expected']}",
    "enum": lambda limits: f"must be {limits['expected']}",
    "greater_than": lambda limits: f"must be greater than {limits['gt']}",
    "greater_than_equal": lambda limits: f"must be at least {limits['ge']}",
    "less_than": lambda limits: f"must be less than {limits['lt']}",
    "less_than_equal": lambda limits: f"must be at most {limits['le']}",
    "string_pattern_mismatch": lambda limits: _pattern(limits["pattern"]),
    "too_short": lambda limits: "must not be empty" if limits["min_length"] == 1 else _at_least(limits),
    "too_long": lambda limits: f"must have at most {counted(limits['max_length'], 'entry', 'entries')}",
}
_MUST_BE = "must be "
_LONGEST_PART = 100  # characters of one name in a field's path
_QUOTED = re.compile(rf"(?<![\w'])'(\S[^']{{{LONGEST_SHOWN_CHARACTERS},}})'(?!\w)", re.DOTALL)


def _pattern(pattern: str) -> str:
    """What a text must be that has to match a regular expression."""
    of_name = re.fullmatch(r"\^\[A-Za-z0-9\]\[A-Za-z0-9\._-\]\{0,(\d+)\}\$", pattern)
    if of_name is None:
        return f"must match the regular expression {pattern}"
    most = int(of_name[1]) + 1
    return f"must be 1 to {most} letters, digits, dots, underscores or hyphens, and begin with a letter or digit"


def first_fault(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The first invalid field and what is wrong with it.

    A value that fits no branch of a union has one error for each branch; they are joined by "or".

    Args:
        errors: The result of `errors()` of a pydantic ValidationError; at least one error.

    Returns:
        The field's dotted name, empty if the whole value is invalid, and a phrase to follow that name.
    """
    place = _place(errors[0])
    phrases = list(dict.fromkeys(_phrase(error) for error in errors if _place(error) == place))
    is_union = len(_place(errors[0])) < len(errors[0]["loc"])
    if not is_union or not all(phrase.startswith(_MUST_BE) for phrase in phrases):
        return ".".join(place), phrases[0]
    return ".".join(place), _MUST_BE + " or ".join(phrase.removeprefix(_MUST_BE) for phrase in phrases)


def short(text: str, most: int = LONGEST_SHOWN_CHARACTERS) -> str:
    """The text, cut to `most` characters with an ellipsis at the end if it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: object, most: int = LONGEST_SHOWN_CHARACTERS) -> str:
    """The `repr` of a value for use in a message, cut to about `most` characters."""
    if isinstance(value, str):  # cut first: it may be megabytes long, and its repr ten times as long
        return repr(short(value, most))
    return short(repr(value), most)


def short_message(message: str) -> str:
    """Shorten a message: both its quoted passages, which are mostly text of the client, and the whole."""
    if len(message) > LONGEST_SHOWN_CHARACTERS:
        message = _QUOTED.sub(lambda found: f"'{short(found[1])}'", message)
    return short(message, LONGEST_MESSAGE_CHARACTERS)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or the name of its class if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


def one_line(error: BaseException, *, longest: int = 300) -> str:
    """The type of an error and the first line of its message, cut to `longest` characters."""
    kind, line = type(error).__name__, first_line(error)
    return short(line if line == kind else f"{kind}: {line}", longest)


def reason(error: Exception) -> str:
    """A short reason for an error. For an OSError, the text of the operating system without paths or numbers."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror
    return first_line(error)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the closest known name; empty if no name is close."""
    near = difflib.get_close_matches(short(name, _LONGEST_PART), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 row`, `20,000 rows`, `2 entries`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _place(error: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(short(str(part), _LONGEST_PART) for part in error["loc"] if not _is_branch(part))


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and (part in _TYPE_NAMES or part.endswith("]"))


def _phrase(error: Mapping[str, Any]) -> str:
    words = _WORDS.get(error["type"])
    return str(error["msg"]).removeprefix("Value error, ") if words is None else words(error.get("ctx") or {})


def _at_least(limits: Mapping[str, Any]) -> str:
    return f"must have at least {counted(limits['min_length'], 'entry', 'entries')}"
