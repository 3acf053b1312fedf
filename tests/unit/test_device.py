"""The device: the right dtype, and errors understood, so that no good row is blamed and no broken GPU kept."""

from __future__ import annotations

import pytest
import torch

from jobs.errors import InvalidSpec
from worker import device


def test_without_a_gpu_the_cpu_is_picked() -> None:
    """A laptop can run every job."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device.pick_device().type == expected


def test_auto_is_float32_on_a_cpu() -> None:
    """By default results equal the pipeline's."""
    assert device.resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert device.resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_an_unknown_dtype_is_the_users_error() -> None:
    """One clear sentence that names the field."""
    with pytest.raises(InvalidSpec) as caught:
        device.resolve_dtype("int3", torch.device("cpu"))
    assert caught.value.param == "dtype"


def test_a_dtype_the_device_lacks_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fails with a sentence instead of every row with a kernel's name."""

    def lacks(dtype: torch.dtype, where: torch.device) -> None:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(device, "_try_out", lacks)
    with pytest.raises(InvalidSpec, match="float16"):
        device.resolve_dtype("float16", torch.device("cpu"))


def test_a_real_cpu_allocation_failure_is_out_of_memory() -> None:
    """The words of torch's own allocator are recognised, not just the ones we believe it uses."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)
    assert not device.is_poisoned(caught.value)


@pytest.mark.parametrize(
    ("error", "out_of_memory", "poisoned"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True, False),
        (MemoryError(), True, False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            True,
            False,
        ),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False, False),
        (ValueError("out of memory of jokes"), False, False),
        (IndexError("index out of range in self"), False, False),
    ],
)
def test_what_an_error_means(error: Exception, out_of_memory: bool, poisoned: bool) -> None:
    """An error of the wrong kind would cost good rows, or keep a broken GPU in use."""
    assert device.is_out_of_memory(error) is out_of_memory
    assert device.is_poisoned(error) is poisoned


def test_prepare_divides_the_cores() -> None:
    """Two slots on one host do not fight for each other's cores."""
    before = torch.get_num_threads()
    try:
        device.prepare(torch.device("cpu"), num_threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_memory_is_known() -> None:
    """Budgets and log lines are made of these."""
    cpu = torch.device("cpu")
    assert 0 < device.free_memory_bytes(cpu) <= device.total_memory_bytes(cpu)
    device.release_memory(cpu)
    with device.Moment(cpu).after(device.side_stream(cpu)):
        assert device.device_name(cpu) == "cpu"
