"""What a job needs of a slot: optional packages, memory, a kind of device, and labels of its host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from jobs.errors import InvalidSpec
from jobs.specs.fields import Strict

_LARGEST_BYTES = 2**53
_MOST_LABELS = 32
_UNITS = {"": 1} | {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_MEMORY = re.compile(r"(\d{1,16}(?:\.\d{1,6})?) ?((?:[KMGT]i?B)?)", re.ASCII | re.IGNORECASE)


def parse_memory(value: object) -> object:
    """Parse text such as `40GB` or `1.5GiB` into bytes; return other types for pydantic to validate."""
    if not isinstance(value, str):
        return value
    match = _MEMORY.fullmatch(value)
    if match is None:
        raise ValueError("must be a number of bytes, or a text such as '40GB' or '1.5GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Memory = Annotated[
    int,
    BeforeValidator(parse_memory),
    Field(gt=0, le=_LARGEST_BYTES),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0, "maximum": _LARGEST_BYTES},
                {"type": "string", "maxLength": 30, "pattern": r"^[1-9][0-9]{0,2}(\.[0-9]{1,6})? ?[KMGT]i?B$"},
            ]
        },
        mode="validation",
    ),
]
"""A positive number of bytes, also written `40GB` (10^9 bytes each) or `40GiB` (2^30)."""
Label = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""A label of a host, such as `a100` or `eu-west.1`."""
Labels = Annotated[list[Label], Field(max_length=_MOST_LABELS)]


class NeedsSpec(Strict):
    """What each slot of the job must have."""

    memory: Memory | None = None
    """Bytes of memory of the device, or of a CPU slot's share; can be written as `40GB`."""
    device: Literal["cuda", "cpu"] | None = None
    """The kind of device."""
    labels: Labels = Field(default_factory=list)
    """Labels that the slot's host must have, all of them; see the setting `labels`."""


class Equipped(Protocol):
    """A slot."""

    @property
    def memory_bytes(self) -> int:
        """Memory of the device."""

    @property
    def device(self) -> str:
        """The kind of device, `cuda` or `cpu`."""

    @property
    def packages(self) -> Any:
        """Optional packages that the host has, of `jobs.specs.packages`; None if unknown, which counts as all."""

    @property
    def labels(self) -> Any:
        """Labels of the host; None counts as none."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a slot must have to work on a job."""

    packages: frozenset[str] = frozenset()
    """Optional packages, the `module` of some of `jobs.specs.packages`."""
    memory_bytes: int = 0
    device: str | None = None
    labels: frozenset[str] = frozenset()

    @staticmethod
    def from_stored(stored: Mapping[str, Any] | None) -> Needs:
        """Read what `stored` has returned; None means no needs."""
        stored = stored or {}
        return Needs(
            frozenset(stored.get("packages", ())),
            stored.get("memory_bytes", 0),
            stored.get("device"),
            frozenset(stored.get("labels", ())),
        )

    def stored(self) -> dict[str, Any]:
        """The needs as JSON, without those that are absent."""
        values = {
            "packages": sorted(self.packages),
            "memory_bytes": self.memory_bytes,
            "device": self.device,
            "labels": sorted(self.labels),
        }
        return {name: value for name, value in values.items() if value}

    def together_with(self, other: Needs) -> Needs:
        """The needs of both."""
        return Needs(
            self.packages | other.packages,
            max(self.memory_bytes, other.memory_bytes),
            other.device or self.device,
            self.labels | other.labels,
        )

    def met_by(self, slot: Equipped) -> bool:
        """Whether a slot has all of it."""
        return (
            slot.memory_bytes >= self.memory_bytes
            and self.device in (None, slot.device)
            and (slot.packages is None or self.packages <= frozenset(slot.packages))
            and self.labels <= frozenset(slot.labels or ())
        )

    def __str__(self) -> str:
        """The needs in words, such as `vllm, 40 GB of memory, device cuda, label a100`."""
        words = sorted(self.packages)
        if self.memory_bytes:
            words.append(f"{in_gigabytes(self.memory_bytes)} of memory")
        if self.device is not None:
            words.append(f"device {self.device}")
        return ", ".join([*words, *(f"label {label}" for label in sorted(self.labels))])


NO_NEEDS = Needs()
"""The needs of a job that any slot can serve."""


def in_gigabytes(num_bytes: int) -> str:
    """A size as people read it, rounded down, so that it never seems to be enough when it is not."""
    return f"{num_bytes * 100 // 10**9 / 100:g} GB" if num_bytes >= 10**7 else f"{num_bytes} bytes"


class Need(Protocol):
    """One thing that a job needs, and how to say that no slot has it."""

    @property
    def part(self) -> Needs:
        """The thing itself."""

    def error(self, beside: str) -> InvalidSpec:
        """Make the error for a job that no slot can serve.

        Args:
            beside: What follows `no slot has it`: empty, or ` beside ` and other things that the job needs.
        """


@dataclass(frozen=True, slots=True)
class NeedOfSpec:
    """A thing that the spec's `needs` asks for."""

    part: Needs
    param: str
    remedy: str
    """What to do if no slot has it."""

    def error(self, beside: str) -> InvalidSpec:
        """See `Need`."""
        return InvalidSpec(f"{self.param}: no slot has {self.part}{beside}; {self.remedy}", param=self.param)


def needs_of(needs: NeedsSpec) -> Iterator[Need]:
    """Each thing that a spec's `needs` asks for."""
    if needs.device is not None:
        yield NeedOfSpec(Needs(device=needs.device), "needs.device", "start a worker on a host that has it")
    if needs.memory is not None:
        yield NeedOfSpec(Needs(memory_bytes=needs.memory), "needs.memory", "ask for less, or start a larger worker")
    for label in needs.labels:
        part = Needs(labels=frozenset({label}))
        yield NeedOfSpec(part, "needs.labels", "start a worker with `--label`, or leave the label out")
