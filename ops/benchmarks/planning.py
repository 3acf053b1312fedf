"""Measure planning: seconds and peak memory of cutting many JSON lines into chunks.

    python ops/benchmarks/planning.py [--rows 10000000] [--chunk-rows 500] [--format jsonl|csv] [--folder /tmp]

The file is written to the folder, cut into chunks in a fresh process, whose peak memory is measured, and deleted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This folder has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from jobs.config.settings import Settings
from jobs.data.sources import open_source
from jobs.data.store import Store
from jobs.db.tables import StoredFile
from jobs.errors import NotFound
from jobs.specs.inference import InputSpec

_WORDS = "the quick brown fox jumps over the lazy dog while grey clouds gather above the quiet harbour town"
_ROWS_AT_ONCE = 100_000


def main() -> None:
    """Write the rows, plan them in a child process, print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--chunk-rows", type=int, default=500)
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan is not None:
        print(json.dumps(plan(options.plan, options.chunk_rows)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / f"rows.{options.format}"
        make(path, options.rows)
        command = [sys.executable, __file__, "--plan", str(path), "--chunk-rows", str(options.chunk_rows)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = path.stat().st_size
    if found["rows"] != options.rows:
        raise SystemExit(f"planned {found['rows']} rows of {options.rows}")
    print(f"rows    {found['rows']:>12,}")
    print(f"file    {size / 2**20:>12,.0f} MiB")
    print(f"chunks  {found['chunks']:>12,}")
    print(f"seconds {found['seconds']:>12.2f}")
    print(f"peak    {found['peak_mib']:>12.0f} MiB resident, of which {found['start_mib']:.0f} before the first row")


def make(path: Path, num_rows: int) -> None:
    """Write rows of about a hundred bytes."""
    with path.open("w") as out:
        if path.suffix == ".csv":
            out.write("id,text\n")
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            indices = range(start, min(start + _ROWS_AT_ONCE, num_rows))
            if path.suffix == ".csv":
                out.writelines(f'{index},"{_WORDS[index % 40 :]}, ""{index}"""\n' for index in indices)
            else:
                out.writelines(f'{{"id": {index}, "text": "{_WORDS[index % 10 :]}"}}\n' for index in indices)


def plan(path: Path, chunk_rows: int) -> dict[str, float]:
    """Cut the file into chunks like the planner, but drop them."""
    settings = Settings(input_roots=[path.parent])
    source = open_source(
        InputSpec(path=str(path), key="id"),
        {"text": "text"},
        rules=settings,
        store=Store(str(path.parent / "store")),
        find_upload=_no_upload,
    )
    start_mib = _peak_mib()
    began = time.perf_counter()
    num_chunks = num_rows = 0
    for chunk in source.index(chunk_rows):
        num_chunks += 1
        num_rows = chunk.stop_row
    seconds = time.perf_counter() - began
    return {
        "rows": num_rows,
        "chunks": num_chunks,
        "seconds": seconds,
        "peak_mib": _peak_mib(),
        "start_mib": start_mib,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _no_upload(file_id: str) -> StoredFile:
    raise NotFound(f"there is no uploaded file '{file_id}'")


if __name__ == "__main__":
    main()
