"""Where results go: the database, or JSONL or Parquet files through the artifact store."""

from __future__ import annotations

from jobs.database import Database
from jobs.sinks.database import DatabaseSink
from jobs.sinks.files import FileSink
from jobs.sinks.jsonl import JsonLines
from jobs.sinks.protocol import NamedObject, Sink
from jobs.specs import OutputSpec
from jobs.store import Store

__all__ = ["NamedObject", "Sink", "open_sink"]


def open_sink(output: OutputSpec, *, vector_output: bool, database: Database, store: Store) -> Sink:
    """The sink that a job's spec asks for.

    Args:
        output: where the results go.
        vector_output: whether the task's output is one float32 vector (`spec.vector_output`).
    """
    match output.to:
        case "database":
            return DatabaseSink(database, vector_output=vector_output)
        case "jsonl":
            return FileSink(JsonLines(vector_output=vector_output), database=database, store=store)
        case "parquet":
            from jobs.sinks.parquet import Parquet

            return FileSink(Parquet(vector_output=vector_output), database=database, store=store)
