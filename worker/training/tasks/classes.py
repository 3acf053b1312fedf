"""The classes of a training: their names in the rows, their ids, and their names in the trained model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.training.tasks.data import InputRows, Record

_DEFAULT_NAME = re.compile(r"LABEL_\d+")
"""transformers' default names of classes."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that a model learns."""

    names: list[str]
    """The model's names of its classes, in the order of ids."""
    ids: dict[str, int]
    """A class's name in the rows -> its id."""

    @classmethod
    def of(
        cls,
        found: frozenset[str],
        known: Mapping[str, int],
        *,
        data_names: Sequence[str] | None = None,
        has_head: bool = False,
    ) -> Classes:
        """Derive the classes from the rows, the data set and the pretrained model.

        Args:
            found: The names of classes in the rows to train on.
            known: The pretrained model's `label2id`. Its ids are kept if it has all of the classes.
            data_names: The names of all classes in the order of ids, if the data set has them.
            has_head: Whether the pretrained model has a head for this task, to which its names belong.
        """
        all_names = found if data_names is None else frozenset(data_names)
        if all_names <= known.keys():
            names = sorted(known, key=known.__getitem__)  # all of them, so that the model's head is kept
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
        """Return the entries of a model's configuration that name the classes."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def ids_of(self, rows: InputRows, row_index: int, record: Record) -> list[int | None]:
        """Return the ids of a row's classes; None for a class that the row does not set.

        Raises:
            InvalidInput: The row is invalid, or has a class that no row to train on has.
        """
        found = rows.classes(row_index, record)
        unknown = next((name for name in found if name is not None and name not in self.ids), None)
        if unknown is not None:
            raise rows.invalid(row_index, f"its class {unknown!r} is in no row of data.train")
        return [None if name is None else self.ids[name] for name in found]


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _are_named(by_id: Mapping[int, str]) -> bool:
    """Return whether a model's classes have names other than the default ones, and ids from 0 without gaps."""
    return by_id.keys() == set(range(len(by_id))) and not all(_DEFAULT_NAME.fullmatch(name) for name in by_id.values())
