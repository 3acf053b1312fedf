"""How many padded tokens a batch may have: set by the user, lowered after an out-of-memory, or the device's default."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from sqlalchemy import select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.tables import SafeBudget
from jobs.errors import ServiceUnavailable
from jobs.specs.inference import BatchingSpec
from worker.device import device_name, total_memory_bytes
from worker.models.batching import auto_cache_tokens, auto_max_rows, auto_max_tokens, auto_rows_in_flight, batch_cost
from worker.models.model_ref import ModelRef
from worker.models.task_model import InFlight, JoinsEqualParts, TaskModel

logger = logging.getLogger(__name__)


class Budget:
    """The limits of a batch for one lease. They are lowered when the device runs out of memory, and never raised."""

    def __init__(
        self, max_tokens: int, max_rows: int, batch_cost: int, remember: Callable[[int], None] = lambda _: None
    ) -> None:
        """
        Args:
            max_tokens: Most padded tokens in one forward pass.
            max_rows: Most rows in one forward pass.
            batch_cost: Fixed cost of a forward pass, in tokens that could be computed in the same time.
            remember: Called with each lower `max_tokens` that was found to fit.
        """
        self.planned_tokens = max_tokens
        """The limit of batches. Fixed for the lease, so that dividing a chunk ahead does not depend on timing."""
        self.max_tokens = max_tokens
        """The limit that fits now; a larger batch is split before it is computed."""
        self.max_rows = max_rows
        self.batch_cost = batch_cost
        self._remember = remember

    def lower(self, max_tokens: int) -> None:
        """Note that batches of `max_tokens` fit where larger ones did not."""
        if max_tokens >= self.max_tokens:
            return
        logger.warning("out of memory: batches are now limited to %d padded tokens", max_tokens)
        self.max_tokens = max_tokens
        self._remember(max_tokens)


def open_budget(
    ref: ModelRef, batching: BatchingSpec, model: TaskModel, *, device: torch.device, database: Database
) -> Budget:
    """Return the budget that a lease starts with.

    Args:
        ref: The model. A limit found after an earlier out-of-memory on the same kind of device is the upper bound.
        batching: The user's settings.
        model: The loaded model.
    """
    name, key = device_name(device), ref.key
    requested_tokens, requested_rows = batching.max_tokens, batching.max_rows
    spare_bytes = total_memory_bytes(device) - model.memory_bytes
    if isinstance(model, InFlight):
        auto_tokens = auto_cache_tokens(device.type, spare_bytes, model.token_bytes)
        auto_rows = auto_rows_in_flight(device.type)
    else:
        generates = isinstance(model, JoinsEqualParts) and model.generates
        auto_tokens = auto_max_tokens(device.type, spare_bytes, generates=generates)
        auto_rows = auto_max_rows(device.type)
    max_tokens = auto_tokens if requested_tokens == "auto" else requested_tokens
    max_rows = auto_rows if requested_rows == "auto" else requested_rows
    with database.read() as session:
        known = select(col(SafeBudget.max_tokens)).where(
            col(SafeBudget.model_key) == key, col(SafeBudget.device_name) == name
        )
        safe = session.scalar(known)
    if safe is not None:
        max_tokens = min(max_tokens, safe)
    return Budget(
        max_tokens, max_rows, batch_cost(device.type), lambda fitting: _remember(database, key, name, fitting)
    )


def _remember(database: Database, key: str, name: str, max_tokens: int) -> None:
    """Record what fits, for later leases on any device of this kind. The smallest of several reports is kept."""
    try:
        with database.write() as session:
            now = session.time()
            fresh = session.insert(SafeBudget).values(
                model_key=key, device_name=name, max_tokens=max_tokens, recorded_at=now
            )
            session.execute(
                fresh.on_conflict_do_update(
                    index_elements=["model_key", "device_name"],
                    set_={"max_tokens": max_tokens, "recorded_at": now},
                    where=col(SafeBudget.max_tokens) > max_tokens,
                )
            )
    except ServiceUnavailable as error:  # only a hint for later leases; this one continues without it
        logger.warning("the safe batch size could not be recorded: %s", error)
