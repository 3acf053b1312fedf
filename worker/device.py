"""The runner's device: which one it is, the dtype to compute in, its memory, and what its errors mean."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import psutil
import torch

from jobs.errors import InvalidSpec, MachineError, UserError
from jobs.messages import one_line

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OUT_OF_MEMORY = (
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",  # DefaultCPUAllocator, if the system refuses at once
    "out of memory",  # CUDA, cuBLAS, cuDNN
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "std::bad_alloc",
)
_POISONED = ("cuda error", "cublas_status_execution_failed", "cudnn_status_execution_failed")
"""Words in errors after which the CUDA context is lost: a device-side assert, an illegal access, a lost GPU..."""


def pick_device() -> torch.device:
    """This process's current CUDA device (one of `CUDA_VISIBLE_DEVICES`), or the CPU without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def prepare(device: torch.device, *, num_threads: int, seed: int = 0) -> None:
    """Set a fresh process up so that equal work gives equal results.

    Args:
        device: The device of this process.
        num_threads: Number of CPU threads for one operation; the slots of a host share its cores.
        seed: The seed of torch's random number generators.
    """
    use_threads(num_threads)
    torch.manual_seed(seed)
    if device.type == "cuda":
        # Autotuning picks kernels by their speed in this run, and the results of kernels differ in the last bits.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def use_threads(num_threads: int) -> None:
    """Set the calling thread's number of threads for one operation of torch.

    A thread for which that is never set gets what any other thread has set last.
    """
    torch.get_num_threads()  # the first call in a thread sets the number; without it, the first operation would
    torch.set_num_threads(num_threads)


def device_name(device: torch.device) -> str:
    """The kind of a device, equal for devices of equal memory and speed (`NVIDIA H200`, `cpu`)."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def total_memory_bytes(device: torch.device) -> int:
    """Total memory of the device; for a CPU, that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can be allocated now, including torch's unused cache; for a CPU, that of the machine."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype a model is loaded in.

    Args:
        name: The `dtype` of a spec. `auto` is bfloat16 on a GPU that supports it, else float32.

    Raises:
        InvalidSpec: This device cannot compute in the dtype.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise InvalidSpec(f"dtype: '{name}' is not one of auto, {', '.join(_DTYPES)}", param="dtype")
    if (
        device.type == "cuda"
        and dtype is torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise _cannot(name, device)
    if dtype is not torch.float32:
        try:
            _try_out(dtype, device)
        except RuntimeError as error:
            if is_out_of_memory(error) or is_poisoned(error):
                raise MachineError(f"the device {device_name(device)} cannot be used: {one_line(error)}") from error
            raise _cannot(name, device) from error
    return dtype


def _cannot(name: str, device: torch.device) -> UserError:
    return InvalidSpec(f"dtype: {device_name(device)} cannot compute in {name}; use auto or float32", param="dtype")


def _try_out(dtype: torch.dtype, device: torch.device) -> None:
    """Run each operation that every transformer needs once, since some devices lack one of them."""
    with torch.inference_mode():
        hidden_BD = torch.ones(4, 8, dtype=dtype, device=device)
        hidden_BD = torch.nn.functional.linear(hidden_BD, hidden_BD.new_ones(8, 8), hidden_BD.new_ones(8))
        hidden_BD = torch.nn.functional.layer_norm(torch.nn.functional.gelu(hidden_BD), (8,))
        heads_BHTD = hidden_BD.reshape(1, 2, 2, 8)
        torch.nn.functional.scaled_dot_product_attention(heads_BHTD, heads_BHTD, heads_BHTD)


# -- what its errors mean --------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error means that the device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def is_poisoned(error: BaseException) -> bool:
    """Whether the CUDA context is lost after this error, so that every later call fails until a new process starts."""
    message = str(error).lower()
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return any(words in message for words in _POISONED)


def tensor_bytes(value: Any) -> int:
    """Memory that the tensors anywhere in a structure take; one that occurs several times counts once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(value)}.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def release_memory(device: torch.device) -> None:
    """Free the memory of dropped models and batches, so that other processes can allocate it."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc, which runners let keep what is freed
    if malloc_trim is not None:
        malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


# -- order between threads ------------------------------------------------------------------------------------------


class Moment:
    """A point in a device's work, so that another thread can wait for one batch only.

    A copy on the forward thread's own stream would also wait for all batches launched since then.
    """

    def __init__(self, device: torch.device) -> None:
        """Mark the work that this thread has launched on `device` so far."""
        self._event: torch.cuda.Event | None = None
        self._at = time.perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def seconds_until(self, later: Moment) -> float:
        """Time that the device took from this moment to a later one; waits until it has reached that one."""
        if self._event is None or later._event is None:
            return later._at - self._at
        later._event.synchronize()
        return float(self._event.elapsed_time(later._event)) / 1000

    def after(self, stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
        """Inside, work of this thread runs on `stream`, after the marked moment.

        Args:
            stream: The result of `side_stream`; None on a CPU, where there is nothing to wait for.
        """
        if self._event is None or stream is None:
            return contextlib.nullcontext()
        stream.wait_event(self._event)
        return torch.cuda.stream(stream)


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies from the device that run parallel to the forward pass; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
