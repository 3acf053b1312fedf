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
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Threads of one operation wait for each other by spinning. When other programs need the cores, they waste their
        # whole time slice while the thread they wait for is not running: with two busy loops on two cores the speed
        # fell to a hundredth. OpenMP, including torch's own copy, reads this when it is loaded.
        "OMP_WAIT_POLICY": "PASSIVE",
        # oneDNN prepares a kernel for each shape and keeps 1,024 of them, twice. Batches of texts differ in shape: with
        # the default, a loop over random lengths took 1.3 GB more, and still grew; with 64, it stayed at 0.4 GB.
        "LRU_CACHE_CAPACITY": "64",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        # By default, glibc returns the memory of large tensors to the kernel as soon as they are dropped, and each page
        # of the next ones is a page fault: 560 thousand for a batch of 16 rows of Whisper, 170 thousand with these.
        # 32 MiB is the largest threshold that glibc takes. `release_memory` returns what is not in use.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    }
    return defaults | with_our_packages(environ) | quiet | dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
