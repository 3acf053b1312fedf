"""Keeps the Python files of a user's module as they were first imported, so that later attempts run the same code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import orjson

import worker

logger = logging.getLogger(__name__)

_FILE = "module.json"
_PACKAGES = Path(worker.__file__).resolve().parents[1]
_OURS = tuple(str(_PACKAGES / name) + "/" for name in ("jobs", "scheduler", "worker"))


class Sources:
    """The content of a module's file, and of the files that it imports from the user's folders."""

    def __init__(self, roots: Sequence[Path] = (), kept: Mapping[str, bytes] | None = None) -> None:
        """
        Args:
            roots: Folders whose files are kept, except for packages that are installed below them.
            kept: Path -> content of a file that is used in place of the file's present content.
        """
        self._roots = tuple(f"{root.resolve()}/" for root in roots)
        self._files = dict(kept or {})

    @classmethod
    def restore(cls, roots: Sequence[Path], checkpoint: Path) -> Sources:
        """Read the files that are saved with a checkpoint. Checkpoints of older versions have none."""
        try:
            carried = orjson.loads((checkpoint / _FILE).read_bytes())
        except FileNotFoundError:
            return cls(roots)
        kept = {path: text.encode("latin-1") for path, text in carried.items()}
        for path, source in kept.items():
            if not Path(path).is_file() or Path(path).read_bytes() != source:
                logger.info("%s has changed since the training began; the training resumes with the old content", path)
        return cls(roots, kept)

    def carry(self, checkpoint: Path) -> None:
        """Save the files that were imported so far with a checkpoint."""
        carried = {
            path: source.decode("latin-1") for path, source in self._files.items()
        }  # keeps the bytes of every encoding
        (checkpoint / _FILE).write_bytes(orjson.dumps(carried))

    def read(self, path: str) -> bytes:
        """Return a file's content as it was first imported. A file that was not imported before is read and kept."""
        source = self._files.get(path)
        return source if source is not None else self._files.setdefault(path, Path(path).read_bytes())

    def covers(self, path: str) -> bool:
        """Return whether a file belongs to the user."""
        return path.startswith(self._roots) and not path.startswith(_OURS) and "/site-packages/" not in path

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Import files of the user's folders from this object while the block runs."""
        finder = _Finder(self)
        place = next((place for place, other in enumerate(sys.meta_path) if other is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(place, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)


class KeptLoader(SourceFileLoader):
    """Loads a file from `Sources`, never from Python's cache of compiled files.

    The cache compares only sizes and times in seconds, so it may hold other code.
    """

    def __init__(self, fullname: str, path: str, sources: Sources) -> None:
        super().__init__(fullname, path)
        self._sources = sources

    def get_data(self, path: str) -> bytes:
        """See `SourceLoader`."""
        return self._sources.read(str(path))

    def get_code(self, fullname: str) -> CodeType:
        """See `SourceLoader`."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds the same modules as Python's own finder, and loads the user's files with a `KeptLoader`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader) and found.origin is not None:
            origin = str(Path(found.origin).resolve())
            if self._sources.covers(origin):
                found.loader, found.cached = KeptLoader(fullname, origin, self._sources), None
        return found
