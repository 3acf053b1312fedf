"""Sinks for a job's results: the database, or JSONL or Parquet files in the artifact store."""

from __future__ import annotations

from jobs.data.sinks.database_sink import DatabaseSink
from jobs.data.sinks.files import FileSink
from jobs.data.sinks.jsonl_sink import JsonLines
from jobs.data.sinks.protocol import NamedObject, Sink
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.specs.inference import OutputSpec

__all__ = ["NamedObject", "Sink", "open_sink"]


def open_sink(output: OutputSpec, *, vector_output: bool, database: Database, store: Store) -> Sink:
    """Create the sink that a job's spec names.

    Args:
        output: The spec's choice of where the results go.
        vector_output: Whether the task's output is one float32 vector (`spec.vector_output`).
    """
    match output.to:
        case "database":
            return DatabaseSink(database, vector_output=vector_output)
        case "jsonl":
            return FileSink(JsonLines(vector_output=vector_output), database=database, store=store)
        case "parquet":
            from jobs.data.sinks.parquet_sink import Parquet

            return FileSink(Parquet(vector_output=vector_output), database=database, store=store)
