"""Which slots this host has: GPUs and MIG slices by UUID through NVML, or CPU shares without any."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import platform
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.config.settings import SlotSettings
from jobs.ledger.slots import SlotInfo
from jobs.specs.packages import PACKAGES

logger = logging.getLogger(__name__)

_CORES_PER_SLOT = 2


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or one MIG slice of it."""

    index: int
    """Number of the GPU in PCI bus order."""
    uuid: str
    """The UUID: `GPU-...`, or `MIG-...` for a slice."""
    name: str
    memory_bytes: int
    parent_uuid: str | None = None
    """For a slice, the UUID of its GPU."""
    slice_index: int | None = None


def discover(settings: SlotSettings, *, visible_devices: str | None) -> list[SlotInfo]:
    """The slots of this host.

    Args:
        settings: `slots` is the highest number of GPUs to use, or the number of CPU slots; `slot_threads` is the number
            of threads of each; `host_name` is part of their ids.
        visible_devices: The value of `CUDA_VISIBLE_DEVICES`; None if it is not set.

    Returns:
        One slot for each visible GPU or MIG slice; without any, CPU slots. Never empty.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", settings.host_name or socket.gethostname())
    cores = available_cores()
    devices = select_visible(find_devices(), visible_devices)
    if settings.slots:
        devices = devices[: settings.slots]
    if devices:
        threads = settings.slot_threads or max(1, cores // len(devices))
        return [_gpu_slot(device, host, threads) for device in devices]
    return cpu_slots(host, cores, settings.slots, settings.slot_threads)


def installed_packages() -> list[str]:
    """The optional packages of Stoker that this host has."""
    return [package.module for package in PACKAGES if importlib.util.find_spec(package.module) is not None]


def find_devices() -> list[Device]:
    """Every GPU without MIG and every MIG slice, in PCI bus order; empty without an NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("no NVIDIA driver: %s", error)
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found += _devices_at(index)
            except pynvml.NVMLError as error:  # one GPU that has fallen off the bus must not make the others unusable
                logger.warning("GPU %d cannot be used: %s", index, error)
        return found
    finally:
        pynvml.nvmlShutdown()


def _devices_at(index: int) -> list[Device]:
    import pynvml

    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(pynvml.nvmlDeviceGetUUID(gpu))
    try:
        mig_is_on = pynvml.nvmlDeviceGetMigMode(gpu)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError_NotSupported:
        mig_is_on = False
    if not mig_is_on:
        return [Device(index, uuid, _text(pynvml.nvmlDeviceGetName(gpu)), _memory_bytes(gpu))]
    slices = []
    for slice_index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slice_index)
        except pynvml.NVMLError_NotFound:
            continue  # not every place for a slice is in use
        name, slice_uuid = _text(pynvml.nvmlDeviceGetName(mig)), _text(pynvml.nvmlDeviceGetUUID(mig))
        slices.append(Device(index, slice_uuid, name, _memory_bytes(mig), uuid, slice_index))
    if not slices:
        logger.warning("GPU %d is in MIG mode but has no slices; it is not used", index)
    return slices


def _memory_bytes(handle: object) -> int:
    import pynvml

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:  # devices that share the host's memory do not report any
        return int(psutil.virtual_memory().total)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def select_visible(devices: Sequence[Device], visible_devices: str | None) -> list[Device]:
    """The devices that `CUDA_VISIBLE_DEVICES` allows, in its order.

    The value is read as CUDA reads it: a list of numbers (here in PCI bus order) or UUIDs, which may be shortened; the
    first entry that matches no device ends the list. An entry that names a GPU in MIG mode stands for all its slices.
    """
    if visible_devices is None:
        return list(devices)
    selected: list[Device] = []
    for entry in (part.strip() for part in visible_devices.split(",")):
        named = [device for device in devices if _is_named(device, entry)]
        if not named:
            break
        selected += [device for device in named if device not in selected]
    return selected


def _is_named(device: Device, entry: str) -> bool:
    if entry.isdecimal():
        return device.index == int(entry)
    if not entry.startswith(("GPU-", "MIG-")):
        return False
    return device.uuid.startswith(entry) or (device.parent_uuid or "").startswith(entry)


def _gpu_slot(device: Device, host: str, num_threads: int) -> SlotInfo:
    place = f"gpu{device.index}" if device.slice_index is None else f"gpu{device.index}-mig{device.slice_index}"
    return SlotInfo(f"{host}-{place}", host, "cuda", device.uuid, device.name, device.memory_bytes, num_threads)


def cpu_slots(host: str, cores: int, wanted: int, wanted_threads: int = 0) -> list[SlotInfo]:
    """CPU slots that share the host's cores.

    Args:
        wanted: Number of slots; 0 means one for every two cores, at least one.
        wanted_threads: Number of threads of each slot; 0 means its share of the cores.
    """
    count = wanted or max(1, cores // _CORES_PER_SLOT)
    memory_bytes = int(psutil.virtual_memory().total) // count
    threads = wanted_threads or max(1, cores // count)
    name = _processor_name()
    return [SlotInfo(f"{host}-cpu{index}", host, "cpu", None, name, memory_bytes, threads) for index in range(count)]


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of cores that this process may use: its CPU affinity, or a container's CPU quota if that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota_cores(cgroup: Path) -> float | None:
    try:
        if (unified := cgroup / "cpu.max").exists():
            quota, period = unified.read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):  # without cgroups there is no limit
        return None


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
