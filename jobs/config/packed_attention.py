"""When text encoders compute batches without padding."""

from __future__ import annotations

from enum import StrEnum


class PackedAttention(StrEnum):
    """When the rows of a batch are computed without padding, if the model allows it."""

    AUTO = "auto"  # on GPUs, in 16 bits
    ON = "on"  # everywhere; on a CPU this is not faster
    OFF = "off"
