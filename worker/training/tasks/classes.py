"""The classes of a training: what rows call them, which id each has, and how the model that comes out names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.training.tasks.data import InputRows, Record

_DEFAULT_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls classes that nobody has named."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that are learned."""

    names: list[str]
    """The model's names of its classes, by their ids."""
    ids: dict[str, int]
    """What rows call a class -> its id."""

    @classmethod
    def of(
        cls,
        found: frozenset[str],
        known: Mapping[str, int],
        *,
        data_names: Sequence[str] | None = None,
        has_head: bool = False,
    ) -> Classes:
        """The classes of some rows.

        Args:
            found: What the rows to learn from call their classes.
            known: A pretrained model's own `label2id`; its ids are kept where it has all of the classes.
            data_names: The names of all classes by their ids, where the data set keeps them.
            has_head: Whether the pretrained model has a head for this task, which its names are of.
        """
        all_names = found if data_names is None else frozenset(data_names)
        if all_names <= known.keys():
            names = sorted(known, key=known.__getitem__)  # all of them, so that its head stays as it is
        elif data_names is not None:
            names = list(data_names)
        elif all(_is_number(name) for name in found):
            by_id = {number: name for name, number in known.items()}
            if has_head and _are_named(by_id) and {int(name) for name in found} == by_id.keys():
                return cls([by_id[number] for number in sorted(by_id)], {name: int(name) for name in found})
            names = sorted(found, key=int)
        else:
            names = sorted(found)
        return cls(names, {name: number for number, name in enumerate(names)})

    def config(self) -> dict[str, dict[Any, Any]]:
        """What a model's configuration says of them."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def ids_of(self, rows: InputRows, row_index: int, record: Record) -> list[int | None]:
        """The ids of a row's classes, None where it leaves one open.

        Raises:
            InvalidInput: The row cannot be learned from, or it has a class that no row to learn from has.
        """
        found = rows.classes(row_index, record)
        unknown = next((name for name in found if name is not None and name not in self.ids), None)
        if unknown is not None:
            raise rows.invalid(row_index, f"its class {unknown!r} is in no row of data.train")
        return [None if name is None else self.ids[name] for name in found]


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _are_named(by_id: Mapping[int, str]) -> bool:
    """Whether a model's names are somebody's, and its ids count from 0."""
    return by_id.keys() == set(range(len(by_id))) and not all(_DEFAULT_NAME.fullmatch(name) for name in by_id.values())
