"""Names that users' modules still use from the last release: accepted for one more release, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def renamed_arguments(**new_names: str) -> Callable[[CallableT], CallableT]:
    """Make a decorator that lets a function or class accept the old names of its arguments.

    Args:
        new_names: Old name -> new name. An old name of a class can be read as an attribute, too.
    """

    def decorate(target: CallableT) -> CallableT:
        if not isinstance(target, type):
            return _accepting(target, target.__name__, new_names)
        target.__init__ = _accepting(target.__init__, target.__name__, new_names)  # type: ignore[misc]
        for old, new in new_names.items():
            setattr(target, old, _old_attribute(target.__name__, old, new))
        return target

    return decorate


def _accepting(function: CallableT, owner: str, new_names: Mapping[str, str]) -> CallableT:
    @functools.wraps(function)
    def accept(*args: Any, **kwargs: Any) -> Any:
        for old in new_names.keys() & kwargs.keys():
            new = new_names[old]
            if new in kwargs:
                raise TypeError(f"{owner}: '{old}' is the old name of '{new}'; only one of them can be given")
            _warn(owner, old, new)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return accept  # type: ignore[return-value]


def _old_attribute(owner: str, old: str, new: str) -> property:
    def read(instance: object) -> Any:
        _warn(owner, old, new)
        return getattr(instance, new)

    return property(read)


def _warn(owner: str, old: str, new: str) -> None:
    message = f"{owner}: '{old}' is now called '{new}'; the old name works for one more release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
