"""The command lines and environments of the worker's child processes: Celery workers and runners."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.child_modules import python_module, with_our_packages
from jobs.ledger.slots import SlotInfo

RUNNER_MODULE = "worker.runner.main_loop"
"""The runner's default module; any module that speaks `worker.wire.protocol` can replace it."""
DISPLACED_STATUS = 76
"""Exit status of a Celery worker whose slot now belongs to another worker process; it must not be started again."""

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
        environ: The supervisor's environment.
        device_uuid: The only visible GPU or MIG slice; None hides all of them.
    """
    return with_our_packages(environ) | {"CUDA_VISIBLE_DEVICES": device_uuid or ""}


def runner_environment(environ: Mapping[str, str], *, num_threads: int) -> dict[str, str]:
    """The environment of a runner.

    Args:
        environ: The Celery worker's environment.
        num_threads: Number of CPU threads of the runner; libraries read it only when they are loaded.
    """
    quiet = {
        "PYTHONUNBUFFERED": "1",  # so that output from just before a crash is not lost
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "true" if num_threads > 1 else "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that vLLM's engine runs inside the runner and ends with it
    }
    unless_told = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Threads of one operation wait for each other by spinning. When other programs need the cores, they waste their
        # whole time slice while the thread they wait for is not running: with two busy loops on two cores the speed
        # fell to a hundredth. OpenMP, including torch's own copy, reads this when it is loaded.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return unless_told | with_our_packages(environ) | quiet | dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
