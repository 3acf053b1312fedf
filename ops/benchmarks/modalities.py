"""Compare images and speech end to end with a `pipeline` loop and with the engine alone, in one run.

    python ops/benchmarks/modalities.py [--task images ctc whisper] [--rows 96] [--rounds 3] [--report FILE.json]

A ViT of base size classifies JPEGs of one megapixel; a wav2vec 2.0 of base size and a Whisper of the size of tiny.en
(greedy, 40 tokens) recognize sounds. Weights are random; files are made on the spot. Each round measures, in an order
that changes, on the same cores and rows:

1. end to end: a job through `stoker up` with one warm slot, from submission to completion by the database's clock,
2. staged: the engine's stages in threads, over the chunks of that job, without a database and a queue,
3. pipeline: a loop over `transformers.pipeline(batch_size=16)`.

The ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# This folder goes last: it has a queue.py of its own, and the standard library's must win.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parent)]

import torch
import transformers as tf
from daemon import Daemon
from media_models import KINDS, SAMPLING_RATE, Kind

from jobs.config.settings import Settings
from jobs.data.rows import Row
from worker import device as devices
from worker.inference.budget import open_budget
from worker.inference.chunks import Piece
from worker.inference.engine import InferenceEngine
from worker.inference.padding_verdicts import PadsRows
from worker.inference.stages import Channel, Stages
from worker.inference.tasks import load_task_model
from worker.models.media.sounds import decode_sound
from worker.models.model_ref import ModelRef
from worker.models.task_model import Encoded

BATCH_ROWS = 16
STAGED_AIM = 0.95


class StagedLoop:
    """The engine's four stages in threads, as in a lease, but without a database, a queue and results."""

    def __init__(
        self, daemon: Daemon, column: str, values: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._rules = Settings(data_dir=daemon.data_dir, input_roots=[Path("/")])
        self._rows = [Row(index, None, {column: value}) for index, value in enumerate(values)]
        self._device = device
        ref = ModelRef.of(daemon.spec)
        self._model = load_task_model(ref, daemon.spec.task_parameters, device=device, dtype=dtype, rules=self._rules)
        if isinstance(self._model, PadsRows):
            self._model.tokens.padding = self._model.probe_padding()
        self._budget = open_budget(ref, daemon.spec.batching, self._model, device=device, database=daemon.database())
        self._num_threads = daemon.num_threads()
        self._encode_threads = max(1, daemon.num_threads() - (device.type == "cuda"))

    def measure(self, chunk_ranges: Sequence[tuple[int, int]]) -> float:
        """Compute all rows, chunk by chunk. Returns the seconds that it takes."""
        threads = {"encode_threads": self._encode_threads, "num_threads": self._num_threads}
        engine = InferenceEngine(self._model, self._device, self._budget, **threads)
        encoded: Channel[Sequence[Sequence[Encoded]]] = Channel(32)
        collated: Channel[tuple[Sequence[Sequence[Encoded]], list[Any]]] = Channel(4)
        computed: Channel[Piece] = Channel(4)

        def encode() -> None:
            for start, stop in chunk_ranges:
                for batches in engine.groups(engine.encode(self._rows[start:stop])):
                    encoded.put(batches)
            encoded.finish()

        def collate() -> None:
            for batches in encoded:
                collated.put((batches, [engine.collate(batch) for batch in batches]))
            collated.finish()

        def forward() -> None:
            for batches, tensors in collated:
                for piece in engine.compute(batches, tensors, lambda: None):
                    computed.put(piece)
            computed.finish()

        outputs: list[Any] = []

        def decode() -> None:
            for piece in computed:
                outputs.extend(engine.decode(piece))

        stages = Stages(
            "staged-", lambda: [channel.cancel() for channel in (encoded, collated, computed)], engine.begin_thread
        )
        started = time.perf_counter()
        stages.start(encode, collate, forward, decode)
        error = stages.join()
        seconds = time.perf_counter() - started
        engine.close()
        if error is not None:
            raise error
        assert len(outputs) == sum(stop - start for start, stop in chunk_ranges)
        return seconds


def by_pipeline(
    kind: Kind, model: Path, values: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Callable[[], float]:
    """Load a pipeline, and return a function that runs all values through it, as people do, and returns the seconds."""
    run = tf.pipeline(kind.task, model=str(model), device=device, dtype=dtype)

    def opened(value: str) -> Any:
        # The pipeline decodes sounds only with an ffmpeg binary, so they are decoded for it.
        if kind.column != "audio":
            return value
        return decode_sound(Path(value).read_bytes(), SAMPLING_RATE, max_seconds=60)

    def measure() -> float:
        started = time.perf_counter()
        for _ in run((opened(value) for value in values), batch_size=BATCH_ROWS, **kind.call):
            pass
        return time.perf_counter() - started

    run(opened(values[0]), **kind.call)  # the first call takes longer
    return measure


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("--task", nargs="+", default=names, choices=names)
    parser.add_argument("--rows", type=int, help="rows of each job; files repeat if there are fewer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    report = [measure(kind, options.rows or kind.rows, options.rounds) for kind in KINDS if kind.name in options.task]
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


def measure(kind: Kind, num_rows: int, rounds: int) -> dict[str, Any]:
    """Measure one kind of rows, print the medians, and return all figures."""
    with tempfile.TemporaryDirectory(prefix="stoker-benchmark-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = kind.make_rows(folder / "files")
        values = [files[number % len(files)] for number in range(num_rows)]
        kind.make_model(folder / "model")
        document = {"task": kind.task, "model": str(folder / "model"), "parameters": dict(kind.parameters)}
        daemon = Daemon(folder, [{kind.column: value} for value in values], document)
        with daemon.running():
            device = devices.pick_device()
            devices.prepare(device, num_threads=daemon.num_threads())
            seconds = in_turns(daemon, kind, folder / "model", values, device, rounds)
    ratios = {
        side: [other / ours for ours, other in zip(seconds["end_to_end"], seconds[side], strict=True)]
        for side in ("staged", "pipeline")
    }
    show(kind, num_rows, seconds, ratios)
    return {
        "task": kind.name,
        "rows": num_rows,
        "parameters": dict(kind.parameters),
        "device": devices.device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": tf.__version__,
        "rows_per_second": {side: [num_rows / one for one in each] for side, each in seconds.items()},
        "ratios": {side: {"median": statistics.median(each), "rounds": each} for side, each in ratios.items()},
    }


def in_turns(
    daemon: Daemon, kind: Kind, model: Path, values: Sequence[str], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each side in each round. Each round starts with another side."""
    chunk_ranges = daemon.chunk_ranges(daemon.run_job())
    dtype = devices.resolve_dtype(daemon.spec.dtype, device)
    staged = StagedLoop(daemon, kind.column, values, device, dtype)
    staged.measure(chunk_ranges[:1])  # the first pass takes longer
    sides: list[tuple[str, Callable[[], float]]] = [
        ("end_to_end", lambda: daemon.measure(daemon.run_job()).seconds),
        ("staged", lambda: staged.measure(chunk_ranges)),
        ("pipeline", by_pipeline(kind, model, values, device, dtype)),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    for number in range(rounds):
        first = number % len(sides)
        for name, side in (*sides[first:], *sides[:first]):
            seconds[name].append(side())
    return seconds


def show(kind: Kind, num_rows: int, seconds: dict[str, list[float]], ratios: dict[str, list[float]]) -> None:
    """Print the medians."""
    rates = ", ".join(f"{side} {num_rows / statistics.median(each):.2f}" for side, each in seconds.items())
    pipeline, staged = (statistics.median(ratios[side]) for side in ("pipeline", "staged"))
    print(
        f"{kind.name}, {num_rows} rows: rows/s: {rates}; end to end / pipeline {pipeline:.2f} (aim {kind.aim}), "
        f"end to end / staged {staged:.2f} (aim {STAGED_AIM})",
        flush=True,
    )


if __name__ == "__main__":
    main()
