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
from worker.models.batching import auto_cache_tokens, auto_max_rows, auto_max_tokens, auto_rows_at_work, batch_cost
from worker.models.model_ref import ModelRef

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
        """The limit that chunks are packed to. Fixed for the lease, so that packing ahead does not depend on timing."""
        self.max_tokens = max_tokens
        """The limit that fits now; a batch that was packed larger is split before it is computed."""
        self.max_rows = max_rows
        self.batch_cost = batch_cost
        self._remember = remember

    def lower(self, max_tokens: int) -> None:
        """Note that batches of `max_tokens` fit where larger ones did not."""
        if max_tokens >= self.max_tokens:
            return
        logger.warning("out of memory: batches of at most %d padded tokens from here on", max_tokens)
        self.max_tokens = max_tokens
        self._remember(max_tokens)


def open_budget(
    ref: ModelRef,
    batching: BatchingSpec,
    *,
    model_bytes: int,
    device: torch.device,
    database: Database,
    token_bytes: int | None = None,
) -> Budget:
    """Return the budget that a lease starts with.

    Args:
        ref: The model. A limit found after an earlier out-of-memory on the same kind of device is the upper bound.
        batching: The user's settings.
        model_bytes: Memory that the model's weights take.
        token_bytes: For an `InFlight` model, the memory that a token takes while its row is being generated.
    """
    name, key = device_name(device), ref.key
    asked_tokens, asked_rows = batching.max_tokens, batching.max_rows
    spare_bytes = total_memory_bytes(device) - model_bytes
    if token_bytes is None:
        auto_tokens, auto_rows = auto_max_tokens(device.type, spare_bytes), auto_max_rows(device.type)
    else:
        auto_tokens = auto_cache_tokens(device.type, spare_bytes, token_bytes)
        auto_rows = auto_rows_at_work(device.type)
    max_tokens = auto_tokens if asked_tokens == "auto" else asked_tokens
    max_rows = auto_rows if asked_rows == "auto" else asked_rows
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
