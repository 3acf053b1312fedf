"""The runner's device: which one, in which dtype, how much memory, and what its errors mean."""

from __future__ import annotations

import contextlib
import gc
from contextlib import AbstractContextManager

import psutil
import torch

from jobs.errors import InvalidSpec, MachineError, UserError
from jobs.messages import first_line, short

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OUT_OF_MEMORY = (
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",  # DefaultCPUAllocator where it was refused at once
    "out of memory",  # CUDA, cuBLAS, cuDNN
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "std::bad_alloc",
)
_POISONED = ("cuda error", "cublas_status_execution_failed", "cudnn_status_execution_failed")
"""What every error of the CUDA runtime begins with: a device-side assert, an illegal access, a lost GPU..."""


def pick_device() -> torch.device:
    """The GPU this process was given (`CUDA_VISIBLE_DEVICES`; of a gang's, its own), or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def prepare(device: torch.device, *, num_threads: int, seed: int = 0) -> None:
    """Set a fresh process up so that equal work gives equal results.

    Args:
        device: what it will compute on.
        num_threads: CPU threads of one operation; slots of one host share its cores.
        seed: of every generator of random numbers.
    """
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    if device.type == "cuda":
        # Autotuning picks kernels by their time in this very run, and kernels differ in their last bits.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def device_name(device: torch.device) -> str:
    """What kind of device this is, equal for devices of equal memory and speed (`NVIDIA H200`, `cpu`)."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def total_memory_bytes(device: torch.device) -> int:
    """The device's whole memory; of a CPU the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can be allocated now, torch's own unused cache included; of a CPU the machine's."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype a model is loaded in.

    Args:
        name: a spec's `dtype`; `auto` is float32 on a CPU, and on a GPU bfloat16 where it has it, else float32.

    Raises:
        InvalidSpec: this device cannot compute in it.
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
    """One each of the operations that every transformer needs, as some devices lack single ones."""
    with torch.inference_mode():
        hidden_BD = torch.ones(4, 8, dtype=dtype, device=device)
        hidden_BD = torch.nn.functional.linear(hidden_BD, hidden_BD.new_ones(8, 8), hidden_BD.new_ones(8))
        hidden_BD = torch.nn.functional.layer_norm(torch.nn.functional.gelu(hidden_BD), (8,))
        heads_BHTD = hidden_BD.reshape(1, 2, 2, 8)
        torch.nn.functional.scaled_dot_product_attention(heads_BHTD, heads_BHTD, heads_BHTD)


# -- what its errors mean --------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that the device, or the host, has too little memory for what was tried."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def is_poisoned(error: BaseException) -> bool:
    """Whether the CUDA context is lost with this error: every later call fails, only a new process helps."""
    message = str(error).lower()
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return any(words in message for words in _POISONED)


def one_line(error: BaseException, *, longest: int = 300) -> str:
    """The kind of an error and the first line of its message, for people; never a traceback."""
    kind, line = type(error).__name__, first_line(error)
    return short(line if line == kind else f"{kind}: {line}", longest)


def release_memory(device: torch.device) -> None:
    """Give back what dropped models and batches held, so that others can allocate it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# -- order between threads ------------------------------------------------------------------------------------------


class Moment:
    """The point in a device's work where one batch is computed, so that another thread can wait for that batch alone.

    Copying on the forward thread's own stream would wait for all the batches that were launched since.
    """

    def __init__(self, device: torch.device) -> None:
        """Mark what was launched so far by this thread on `device`."""
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def after(self, stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
        """Inside, work of this thread runs on `stream`, after the marked moment.

        Args:
            stream: from `side_stream`; None on a CPU, where there is nothing to wait for.
        """
        if self._event is None or stream is None:
            return contextlib.nullcontext()
        stream.wait_event(self._event)
        return torch.cuda.stream(stream)


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies from the device beside the forward pass; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
