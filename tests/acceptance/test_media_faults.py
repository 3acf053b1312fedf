"""Images and sounds keep the main promise, too: any process may be killed, and every row has exactly one result."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from tests.support.media_files import write_jpegs, write_sounds
from tests.support.process_killer import ProcessKiller, assert_invariants, num_chunks_done, num_chunks_lost
from tests.support.records import records_of
from tests.support.rows import write_rows
from tests.support.stack import QUICK, Stack, stack
from tests.support.task_kit import same
from tests.support.tiny import tiny_image_classifier
from tests.support.tiny_media import tiny_whisper

KILLED_ROLES = ("runner", "celery", "supervisor", "scheduler", "redis")
MOST_ROUNDS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "num_sounds", "num_kills", "pauses"),
    [
        (300, 40, 6, (0.1, 60.0)),
        pytest.param(2000, 500, 60, (2.0, 8.0), marks=pytest.mark.soak),
    ],
)
def test_every_image_and_sound_survives_kills_of_all_processes(
    num_images: int, num_sounds: int, num_kills: int, pauses: tuple[float, float], tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    specs = [image_spec(tmp_path / "images", num_images), sound_spec(tmp_path / "sounds", num_sounds)]
    with stack(tmp_path / "data", slots=2, **QUICK) as running, records_of(running) as records:
        expected = [running.results(job["id"]) for job in completed(running, specs)]
        url = Settings(data_dir=running.data_dir).resolved_database_url
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        killer = ProcessKiller(
            running,
            seed,
            lambda: num_chunks_done(url),
            roles=KILLED_ROLES,
            pause_seconds=pauses[0],
            longest_pause_seconds=pauses[1],
            is_enough=lambda kills: len(kills) >= num_kills and num_chunks_lost(url) > 0,
        )
        started = time.monotonic()
        killer.start()
        try:
            rounds: list[list[dict[str, Any]]] = []
            while len(rounds) < MOST_ROUNDS and killer.is_alive():
                rounds.append(completed(running, specs))
        finally:
            killer.stopped.set()
            killer.join()
        print(f"{killer.kills} in {time.monotonic() - started:.0f} s and {len(rounds)} rounds")
        print(f"{num_chunks_lost(url)} of {num_chunks_done(url)} chunks were lost and computed again")
        assert set(killer.kills) == set(KILLED_ROLES), "the jobs were too short for every fault"
        assert len(killer.kills) >= num_kills
        for jobs in rounds:
            for job, calm in zip(jobs, expected, strict=True):
                assert job["counts"] == {"total": len(calm), "done": len(calm), "failed": 0}
                # The halves of a chunk that was split are other batches, and a batch's shape may change the last bits.
                tolerance = 1e-5 if records.events(job["id"], "chunk.split") else 0.0
                assert same(running.results(job["id"]), calm, tolerance=tolerance)
                assert_invariants(url, job["id"], len(calm))
                records.assert_sound(job["id"])
        for calm, num_rows in zip(expected, (num_images, num_sounds), strict=True):
            assert [(row["row_index"], row["key"]) for row in calm] == [(row, f"r{row}") for row in range(num_rows)]
            assert len({str(row["output"]) for row in calm}) > num_rows / 10, "equal outputs would show nothing"


def completed(running: Stack, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs beside each other, and return them once all have completed."""
    jobs = [running.await_end(job_id, 600.0) for job_id in [running.submit(spec) for spec in specs]]
    assert [job["state"] for job in jobs] == ["completed"] * len(jobs), jobs
    return jobs


def image_spec(folder: Path, num_images: int) -> dict[str, Any]:
    """The spec of a job that classifies JPEG files with a ViT."""
    rows = write_rows(folder.with_suffix(".jsonl"), write_jpegs(folder, num_images))
    model = tiny_image_classifier(folder / "model")
    return _spec("image-classification", model, rows, chunk_rows=8)


def sound_spec(folder: Path, num_sounds: int) -> dict[str, Any]:
    """The spec of a job that transcribes WAV and FLAC files with a Whisper."""
    rows = write_rows(folder.with_suffix(".jsonl"), write_sounds(folder, num_sounds))
    model = tiny_whisper(folder / "model")
    return _spec("automatic-speech-recognition", model, rows, chunk_rows=4, parameters={"num_beams": 2})


def _spec(task: str, model: Path, rows: Path, *, chunk_rows: int, **fields: Any) -> dict[str, Any]:
    source, batching = {"path": str(rows), "key": "id"}, {"chunk_rows": chunk_rows}
    return {"task": task, "model": str(model), "input": source, "batching": batching, **fields}
