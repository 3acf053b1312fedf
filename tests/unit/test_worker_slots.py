"""Which slots a host is found to have: the wrong answer wastes GPUs, or puts two jobs on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config.settings import Settings
from worker.host import slots
from worker.host.slots import Device, available_cores, cpu_slots, discover, select_visible

_GPUS = [Device(index, f"GPU-{index}{'abcd'[index]}00", "NVIDIA H200", 141 * 2**30) for index in range(3)]
_SLICES = [
    Device(3, f"MIG-{name}", "NVIDIA H200 MIG 1g.18gb", 18 * 2**30, "GPU-3d00", at) for at, name in enumerate("xy")
]
_ALL = [*_GPUS, *_SLICES]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0, 1", [0, 1]),
        ("GPU-1b00,GPU-0a00", [1, 0]),
        ("GPU-2", [2]),
        ("MIG-y", [4]),
        ("3", [3, 4]),
        ("GPU-3d00", [3, 4]),
        ("0,7,1", [0]),
        ("0,none,1", [0]),
        ("1,1", [1]),
    ],
)
def test_cuda_visible_devices_is_honoured_as_cuda_reads_it(visible: str | None, expected: list[int]) -> None:
    assert select_visible(_ALL, visible) == [_ALL[index] for index in expected]


def test_each_gpu_and_each_mig_slice_is_a_slot_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "find_devices", lambda: _ALL)
    found = discover(settings.model_copy(update={"host_name": "my host/1"}), visible_devices=None)
    assert [slot.id for slot in found] == [
        "my-host-1-gpu0", "my-host-1-gpu1", "my-host-1-gpu2", "my-host-1-gpu3-mig0", "my-host-1-gpu3-mig1",
    ]  # fmt: skip
    assert [slot.device_uuid for slot in found] == [device.uuid for device in _ALL]
    assert {slot.device for slot in found} == {"cuda"}
    assert found[3].memory_bytes == 18 * 2**30
    assert all(slot.num_threads >= 1 for slot in found)


def test_the_number_of_gpus_can_be_limited(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "find_devices", lambda: _ALL)
    assert len(discover(settings.model_copy(update={"slots": 2}), visible_devices=None)) == 2


def test_without_a_gpu_there_are_cpu_slots(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "find_devices", lambda: _ALL)
    found = discover(settings, visible_devices="")
    assert found
    assert {(slot.device, slot.device_uuid) for slot in found} == {("cpu", None)}


@pytest.mark.parametrize("devices", [[], _GPUS], ids=["cpu", "gpu"])
def test_the_number_of_threads_of_a_slot_can_be_set(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, devices: list[Device]
) -> None:
    monkeypatch.setattr(slots, "find_devices", lambda: devices)
    found = discover(settings.model_copy(update={"slots": 2, "slot_threads": 3}), visible_devices=None)
    assert [slot.num_threads for slot in found] == [3, 3]


@pytest.mark.parametrize(
    ("cores", "wanted", "count", "threads"), [(1, 0, 1, 1), (2, 0, 1, 2), (9, 0, 4, 2), (8, 2, 2, 4), (2, 5, 5, 1)]
)
def test_cpu_slots_share_the_cores(cores: int, wanted: int, count: int, threads: int) -> None:
    found = cpu_slots("host", cores, wanted)
    assert [slot.id for slot in found] == [f"host-cpu{index}" for index in range(count)]
    assert {slot.num_threads for slot in found} == {threads}
    assert found[0].memory_bytes > 0
    assert found[0].name


def test_a_machine_without_a_driver_has_no_devices() -> None:
    """On a machine with a GPU it has some; either way asking does not fail."""
    assert isinstance(slots.find_devices(), list)


@pytest.mark.parametrize(
    ("name", "text"), [("cpu.max", "max 100000\n"), ("cpu.max", "nonsense"), ("other", "")], ids=str
)
def test_without_a_quota_all_cores_count(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == available_cores(tmp_path / "missing")


def test_a_containers_quota_counts(tmp_path: Path) -> None:
    """Otherwise a container with one core on a host with 64 would start 32 slots."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == 1
