"""The command lines and environments of the worker's child processes: Celery workers and runners."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.child_modules import python_module, with_our_packages
from jobs.ledger.slots import SlotInfo

RUNNER_MODULE = "worker.runner.main_loop"
"""The runner that carries the inference engine; anything that speaks `protocol` can stand in for it."""
DISPLACED_STATUS = 76
"""Exit status of a Celery worker whose slot now belongs to another worker process; it is not to be started again."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def app_command(slot: SlotInfo, incarnation: str, *, runner_module: str) -> list[str]:
    """The command of one slot's Celery worker."""
    return python_module(
        "worker.keeper.app",
        *("--slot", slot.id, "--incarnation", incarnation, "--device", slot.device),
        *("--threads", str(slot.num_threads), "--runner-module", runner_module),
    )


def runner_command(runner_module: str, *, device: str, num_threads: int) -> list[str]:
    """The command of a slot's runner."""
    return python_module(runner_module, "--device", device, "--threads", str(num_threads))


def app_environment(environ: Mapping[str, str], *, device_uuid: str | None) -> dict[str, str]:
    """The environment of one slot's Celery worker, inherited by its runner.

    Args:
        environ: the supervisor's own.
        device_uuid: the one GPU or MIG slice that may be seen; None hides them all.
    """
    return with_our_packages(environ) | {"CUDA_VISIBLE_DEVICES": device_uuid or ""}


def runner_environment(environ: Mapping[str, str], *, num_threads: int) -> dict[str, str]:
    """The environment of a runner.

    Args:
        environ: the Celery worker's own.
        num_threads: CPU threads it may use; the libraries read it when they are loaded, not later.
    """
    quiet = {
        "PYTHONUNBUFFERED": "1",  # what it prints before it dies must be read
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "true" if num_threads > 1 else "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine lives and dies with the runner
    }
    unless_told = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Threads of one operation wait for each other by spinning, and where other programs want the cores they spin
        # their whole turn away while the one they wait for is not running: a hundredth of the speed, seen with two busy
        # loops on two cores. OpenMP reads this when it is loaded, torch's own copy as well.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return unless_told | with_our_packages(environ) | quiet | dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
