"""Write a checkpoint's folder on the local disk: into a folder aside, synced, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.data.atomic import place_folder
from jobs.errors import NotKept, StokerError
from jobs.messages import one_line
from worker.device import is_out_of_memory
from worker.training.collectives import Gang


@contextmanager
def writing_checkpoint(path: Path, step: int, gang: Gang) -> Iterator[Path]:
    """Give all ranks a folder to write a checkpoint into. After the block it is synced and renamed to `path`.

    Args:
        path: Where the checkpoint will be; nothing is there before it is complete.
        step: The step of the checkpoint, for messages.
        gang: All ranks of the training; each calls this.

    Raises:
        NotKept: The checkpoint cannot be written, for example because the disk is full.
    """
    try:
        with _aside(path, gang) as aside:
            yield aside
    except StokerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotKept(f"the checkpoint of step {step} could not be written: {one_line(error)}") from error


@contextmanager
def _aside(path: Path, gang: Gang) -> Iterator[Path]:
    aside = path.parent / "saving" / path.name
    if gang.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    gang.barrier()
    yield aside
    gang.barrier()
    if gang.rank == 0:
        place_folder(aside, path)
