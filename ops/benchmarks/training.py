"""Compare a training under the daemon with the same training as a script run by hand, in one run, in turns.

    python ops/benchmarks/training.py [--steps 520] [--batch 16] [--rounds 3] [--slots 2] [--report FILE.json]

MiniLM learns from which package a docstring of Python's standard library is, with at most 64 tokens per text.
Each round measures, on the same cores and threads:

1. daemon: a job through `stoker up` with one slot, checkpoints at the default interval, every step recorded,
2. by hand: a script with transformers' Trainer over the same rows and arguments, with checkpoints at that interval.

Steps per second are measured from the beginning of the training to the end of its last step, by each side's own clock.
This includes checkpoints if there are more steps than their interval (500). The daemon's time also includes the
Trainer's own setup and a check of the weights. The report has the seconds of a whole job with its start as well. The
order of the sides changes from round to round. The ratio is the median over the rounds.

With `--slots N`, a second daemon with N slots runs the same training on one slot and on all of them together, each slot
with batches of that size. The ratio is that of the samples per second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# This folder goes last: it has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent)]

import torch
import transformers
from chain import training_spec, write_rows
from daemon import Daemon

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.tables import Artifact, Job
from jobs.errors import InvalidSpec
from jobs.specs.inference import parse_spec
from worker import device as devices

BY_HAND = """
import json, sys, time
import torch
from datasets import load_dataset
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer,
                          TrainerCallback, TrainingArguments)

plan = json.load(open(sys.argv[1]))
torch.set_num_threads(plan["threads"])
rows = load_dataset("json", data_files=plan["train"], split="train")
labels = sorted(set(rows["package"]))
tokenizer = AutoTokenizer.from_pretrained(plan["model"])
rows = rows.map(lambda row: {**tokenizer(row["text"], truncation=True, max_length=64),
                             "label": labels.index(row["package"])}, remove_columns=rows.column_names)
model = AutoModelForSequenceClassification.from_pretrained(plan["model"], num_labels=len(labels))
times = []

class Clock(TrainerCallback):
    def on_train_begin(self, *_, **__):
        times.append(time.perf_counter())

    def on_step_end(self, *_, **__):
        times.append(time.perf_counter())

arguments = TrainingArguments(output_dir=plan["output"], report_to="none", save_strategy="steps", **plan["arguments"])
collate = DataCollatorWithPadding(tokenizer)
Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
print(json.dumps({"steps_per_second": (len(times) - 1) / (times[-1] - times[0])}))
"""


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=520)
    parser.add_argument("--batch", type=int, default=16, help="rows per step on one slot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=1, help="also compare this number of slots with one")
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="stoker-benchmark-") as name:
        folder = Path(name)
        write_rows(folder)
        document = training_spec(folder, options.steps).model_dump(mode="json")
        arguments = {**document["arguments"], "per_device_train_batch_size": options.batch}
        document = {**document, "arguments": arguments, "checkpoint": {}, "data": {**document["data"], "eval": None}}
        daemon = start_of(document, folder / "one", num_slots=1)
        with daemon.running():
            report = measure_all(daemon, document, folder, options)
        if options.slots > 1:
            report["gang"] = measure_gang(document, folder, options)
    show(report)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


def start_of(document: dict[str, Any], folder: Path, *, num_slots: int) -> Daemon:
    """A daemon that loads the model first, like one that has run for a while."""
    folder.mkdir()
    embeddings = {"task": "embeddings", "model": document["model"]}
    return Daemon(folder, [{"text": "warm"}], embeddings, num_slots=num_slots)


def measure_all(daemon: Daemon, document: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides in every round, in turns."""
    rates: dict[str, list[float]] = {"daemon": [], "by_hand": []}
    seconds: list[float] = []
    for number in range(1, options.rounds + 1):
        for side in ("daemon", "by_hand") if number % 2 else ("by_hand", "daemon"):
            if side == "by_hand":
                rates[side].append(by_hand(daemon, document, folder))
                continue
            summary, whole = under_the_daemon(daemon, daemon.submit(document))
            rates[side].append(options.steps / summary["seconds"])
            seconds.append(whole)
        print(
            f"round {number}: steps/s: {', '.join(f'{side} {each[-1]:.2f}' for side, each in rates.items())}",
            flush=True,
        )
    ratios = [ours / theirs for ours, theirs in zip(rates["daemon"], rates["by_hand"], strict=True)]
    return {
        "steps": options.steps,
        "batch": options.batch,
        "device": devices.device_name(devices.pick_device()),
        "threads": daemon.num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "steps_per_second": rates,
        "seconds_of_a_job": seconds,
        "ratio": {"median": statistics.median(ratios), "rounds": ratios},
    }


def measure_gang(document: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one slot and all slots together, in turns. If this is not possible, the report says why."""
    together = {**document, "slots": options.slots}
    try:
        parse_spec(together)
    except InvalidSpec as error:
        return {"slots": options.slots, "skipped": error.message}
    rates: dict[str, list[float]] = {"one": [], "all": []}
    daemon = start_of(document, folder / "gang", num_slots=options.slots)
    with daemon.running():
        threads = daemon.num_threads()
        for number in range(1, options.rounds + 1):
            for side, each in (("one", document), ("all", together)):
                rates[side].append(under_the_daemon(daemon, daemon.submit(each))[0]["samples_per_second"])
            shown = ", ".join(f"{side} {each[-1]:.1f}" for side, each in rates.items())
            print(f"round {number}: samples/s on slots: {shown}", flush=True)
    ratios = [all_slots / one for all_slots, one in zip(rates["all"], rates["one"], strict=True)]
    return {
        "slots": options.slots,
        "threads_of_a_slot": threads,
        "samples_per_second": rates,
        "ratio": {"median": statistics.median(ratios), "rounds": ratios},
    }


def under_the_daemon(daemon: Daemon, job_id: str) -> tuple[dict[str, Any], float]:
    """The summary that the training wrote, and the seconds of the whole job."""
    settings = Settings(data_dir=daemon.data_dir)
    with daemon.database().read() as session:
        job, made = session.get_one(Job, job_id), session.get_one(Artifact, (job_id, "summary.json"))
    with Store(settings.resolved_store_url).open(made.key) as file:
        summary = json.load(file)
    return summary, (job.ended_at or 0.0) - job.created_at


def by_hand(daemon: Daemon, document: dict[str, Any], folder: Path) -> float:
    """Steps per second of the script."""
    plan = {
        "model": document["model"],
        "train": document["data"]["train"],
        "arguments": document["arguments"],
        "threads": daemon.num_threads(),
        "output": str(folder / "by-hand"),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "by_hand.py").write_text(BY_HAND)
    argv = [sys.executable, str(folder / "by_hand.py"), str(folder / "plan.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(daemon.num_threads()), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    return float(json.loads(done.stdout.splitlines()[-1])["steps_per_second"])


def show(report: dict[str, Any]) -> None:
    """Print the medians."""
    print(f"{report['steps']} steps on {report['device']}, {report['threads']} threads")
    for side, rates in report["steps_per_second"].items():
        print(f"{side:<10}{statistics.median(rates):>8.2f} steps/s")
    print(f"daemon / by hand {report['ratio']['median']:.3f}   (target: at least 0.98)")
    gang = report.get("gang")
    if gang is not None and "skipped" in gang:
        print(f"{gang['slots']} slots over one: skipped, {gang['skipped']}")
    elif gang is not None:
        for side, rates in gang["samples_per_second"].items():
            print(f"{side:<10}{statistics.median(rates):>8.1f} samples/s")
        print(f"{gang['slots']} slots over one {gang['ratio']['median']:.3f}")


if __name__ == "__main__":
    main()
