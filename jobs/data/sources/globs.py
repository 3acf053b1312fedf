"""What a glob matches on this machine, with a bound on how much is looked at to find it."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.data.sources.opening import PARAM
from jobs.errors import InvalidInput
from jobs.specs.bounds import MOST_GLOB_NAMES, glob_fault

_WILD = re.compile(r"[*?\[]")


def local_matches(pattern: str) -> list[str]:
    """The files that match, sorted by name; folders are passed over.

    As `glob.glob` does it, names that begin with a dot match only a pattern that does too, and `**` stands for any
    number of folders, links to folders included.

    Args:
        pattern: of a path; a relative one begins at the working directory.

    Raises:
        InvalidInput: the pattern has too many wildcards, or too many names would have to be looked at.
    """
    fault = glob_fault(pattern)
    if fault is not None:
        raise InvalidInput(f"{PARAM}: '{pattern}' {fault}", param=PARAM)
    parts = [part for part in pattern.split("/") if part]
    found = _Search(pattern).below("/" if pattern.startswith("/") else "", tuple(parts))
    return sorted(set(found))


class _Search:
    """One search."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._num_names = 0
        self._done: set[tuple[str, tuple[str, ...]]] = set()
        """What was searched already: two `**` come to the same folder in several ways."""

    def below(self, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
        """The files below a folder, which is empty or ends in a slash, that match the parts of a path."""
        if (folder, parts) in self._done:
            return
        self._done.add((folder, parts))
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._deep(folder, rest)
        elif not _WILD.search(part):
            yield from self._go_on(folder + part, rest)
        else:
            for name, _ in self._listed(folder, _matcher(part)):
                yield from self._go_on(folder + name, rest)

    def _go_on(self, path: str, rest: tuple[str, ...]) -> Iterator[str]:
        if rest:
            yield from self.below(f"{path}/", rest)
        elif os.path.lexists(path) and not Path(path).is_dir():  # a link to nothing is an error, not one file less
            yield path

    def _deep(self, folder: str, rest: tuple[str, ...]) -> Iterator[str]:
        """`**` in the middle stands for no folder or more, at the end for all that is below."""
        folders = [folder]
        while folders:
            current = folders.pop()
            if rest:
                yield from self.below(current, rest)
            for name, is_folder in self._listed(current, lambda name: not name.startswith(".")):
                if is_folder:
                    if not _leads_back(current, name):
                        folders.append(f"{current}{name}/")
                elif not rest:
                    yield current + name

    def _listed(self, folder: str, matches: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
        """The names in a folder that match, and whether each is a folder; none where it may not be read."""
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    self._num_names += 1
                    if self._num_names > MOST_GLOB_NAMES:
                        raise InvalidInput(
                            f"{PARAM}: '{self._pattern}' looks at more than {MOST_GLOB_NAMES} names; name a folder "
                            "that is nearer to the files",
                            param=PARAM,
                        )
                    if matches(entry.name):
                        yield entry.name, entry.is_dir()
        except OSError:
            return


def _leads_back(folder: str, name: str) -> bool:
    """Whether a name in a folder is a link to that folder or to one that holds it."""
    path = Path(folder + name)
    return path.is_symlink() and Path(folder or ".").resolve().is_relative_to(path.resolve())


def _matcher(part: str) -> Callable[[str], bool]:
    compiled = re.compile(fnmatch.translate(part))
    shows_hidden = part.startswith(".")
    return lambda name: (shows_hidden or not name.startswith(".")) and compiled.match(name) is not None
