"""Match globs against local files, with a limit on the number of names that are searched."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.data.sources.open_file import PARAM
from jobs.errors import InvalidInput
from jobs.specs.bounds import MOST_GLOB_NAMES, glob_fault

_WILD = re.compile(r"[*?\[]")


def local_matches(pattern: str) -> list[str]:
    """List the files that match a glob, sorted by name, without folders.

    As in `glob.glob`, names that begin with a dot match only patterns that begin with a dot, and `**` matches any
    number of folders, including links to folders.

    Args:
        pattern: Glob of a path; a relative one begins at the working directory.

    Raises:
        InvalidInput: The pattern has too many wildcards, or too many names would have to be searched.
    """
    fault = glob_fault(pattern)
    if fault is not None:
        raise InvalidInput(f"{PARAM}: '{pattern}' {fault}", param=PARAM)
    parts = [part for part in pattern.split("/") if part]
    found = _Search(pattern).below("/" if pattern.startswith("/") else "", tuple(parts))
    return sorted(set(found))


class _Search:
    """The state of one search."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._num_names = 0
        self._done: set[tuple[str, tuple[str, ...]]] = set()
        """Folders and remaining patterns that were searched already: two `**` reach the same folder in several ways."""

    def below(self, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
        """Yield the files below a folder that match the parts of a path; the folder is empty or ends with a slash."""
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
        elif os.path.lexists(path) and not Path(path).is_dir():  # a dangling link must be reported, not skipped
            yield path

    def _deep(self, folder: str, rest: tuple[str, ...]) -> Iterator[str]:
        """Match `**`: in the middle it stands for zero or more folders, at the end for everything below."""
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
        """Yield the matching names in a folder, and whether each is a folder; nothing if the folder cannot be read."""
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    self._num_names += 1
                    if self._num_names > MOST_GLOB_NAMES:
                        raise InvalidInput(
                            f"{PARAM}: '{self._pattern}' has to search more than {MOST_GLOB_NAMES} names; begin the "
                            "glob with a folder closer to the files",
                            param=PARAM,
                        )
                    if matches(entry.name):
                        yield entry.name, entry.is_dir()
        except OSError:
            return


def _leads_back(folder: str, name: str) -> bool:
    """Whether a name in a folder is a link to that folder or to one of its parents."""
    path = Path(folder + name)
    return path.is_symlink() and Path(folder or ".").resolve().is_relative_to(path.resolve())


def _matcher(part: str) -> Callable[[str], bool]:
    compiled = re.compile(fnmatch.translate(part))
    shows_hidden = part.startswith(".")
    return lambda name: (shows_hidden or not name.startswith(".")) and compiled.match(name) is not None
