"""A running stack with a model that misbehaves on certain words, and jobs for it, for tests of faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config.settings import Settings
from tests.support.odd_model import odd_encoder, trusting
from tests.support.records import Records, records_of
from tests.support.rows import embedding_spec, with_ids, write_rows
from tests.support.stack import Stack, stack
from tests.support.tiny import SENTENCES


@dataclass(frozen=True)
class Deployment:
    """A running stack, its records, and a folder with models and inputs."""

    stack: Stack
    records: Records
    folder: Path

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / "model"

    @property
    def gate(self) -> Path:
        """Rows with the word `WAITS` are computed once this file exists."""
        return self.folder / "gate"

    @property
    def settings(self) -> Settings:
        """The settings of the stack, except those of its environment."""
        return Settings(data_dir=self.stack.data_dir)

    def spec(self, name: str, texts: Iterable[str], **fields: Any) -> dict[str, Any]:
        """The spec of an embeddings job over these texts; the file `name` is written only once."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():  # a job may be reading it
            write_rows(path, with_ids(texts))
        return embedding_spec(self.model, path, **fields)

    def completed(self, spec: Mapping[str, Any], *, num_failed: int = 0) -> str:
        """Submit a job and wait until it has completed. Returns its id."""
        job_id = self.stack.submit(spec)
        self.assert_completed(job_id, num_failed=num_failed)
        return job_id

    def assert_completed(self, job_id: str, *, num_failed: int = 0) -> None:
        """Wait until a job has completed, with a result for each row and `num_failed` errors among them."""
        job = self.stack.await_end(job_id, 120.0)
        assert job["state"] == "completed", job
        counts = job["counts"]
        assert counts == {"total": counts["total"], "done": counts["total"], "failed": num_failed}
        self.records.assert_sound(job_id)


def numbered_texts(num_rows: int, words: Mapping[int, str] | None = None, *, characters: int = 1000) -> list[str]:
    """A distinct text for each row.

    Args:
        num_rows: Number of texts.
        words: Row -> a word with which its text begins.
        characters: The most characters of a sentence that a text contains.
    """
    words = words or {}
    return [f"{words.get(row, '')} {row} {SENTENCES[row % len(SENTENCES)][:characters]}" for row in range(num_rows)]


@contextmanager
def deployment(folder: Path, *, slots: int = 1, **environment: str) -> Iterator[Deployment]:
    """A running stack that trusts the model in `folder`, which misbehaves on the words of `odd_model`."""
    model = odd_encoder(folder / "model", gate=folder / "gate")
    environment |= trusting(model, folder / "modules")
    with stack(folder / "data", slots=slots, **environment) as running, records_of(running) as records:
        yield Deployment(running, records, folder)
