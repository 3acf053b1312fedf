"""The Python files of a user's module: kept as they were imported first, so that a later attempt runs the same ones."""

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
    """What a module's file and the files that it imports from folders of the user's hold."""

    def __init__(self, roots: Sequence[Path] = (), kept: Mapping[str, bytes] | None = None) -> None:
        """
        Args:
            roots: The folders whose files are kept; what is installed below them is not.
            kept: Files by their paths, which are used in place of what stands there now.
        """
        self._roots = tuple(f"{root.resolve()}/" for root in roots)
        self._files = dict(kept or {})

    @classmethod
    def restore(cls, roots: Sequence[Path], checkpoint: Path) -> Sources:
        """The files that a checkpoint carries; a checkpoint of an older version carries none."""
        try:
            carried = orjson.loads((checkpoint / _FILE).read_bytes())
        except FileNotFoundError:
            return cls(roots)
        kept = {path: text.encode("latin-1") for path, text in carried.items()}
        for path, source in kept.items():
            if not Path(path).is_file() or Path(path).read_bytes() != source:
                logger.info("%s has changed since the training began, which goes on with the file as it was", path)
        return cls(roots, kept)

    def carry(self, checkpoint: Path) -> None:
        """Put the files that were imported so far into a checkpoint."""
        carried = {path: source.decode("latin-1") for path, source in self._files.items()}  # whatever their encoding
        (checkpoint / _FILE).write_bytes(orjson.dumps(carried))

    def read(self, path: str) -> bytes:
        """A file as it was imported first; one that was not imported yet as it stands, from now on."""
        source = self._files.get(path)
        return source if source is not None else self._files.setdefault(path, Path(path).read_bytes())

    def covers(self, path: str) -> bool:
        """Whether a file is the user's own."""
        return path.startswith(self._roots) and not path.startswith(_OURS) and "/site-packages/" not in path

    @contextmanager
    def importing(self) -> Iterator[None]:
        """While inside, what is imported from the user's folders comes from here."""
        finder = _Finder(self)
        place = next((place for place, other in enumerate(sys.meta_path) if other is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(place, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)


class KeptLoader(SourceFileLoader):
    """Loads a file as `Sources` has it, whatever was compiled of it: the cache takes equal size and second for equal
    text."""

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
    """Finds what Python's own finder finds, and has the user's files loaded by a `KeptLoader`."""

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
