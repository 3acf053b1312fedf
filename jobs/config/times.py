"""Times and counts by which the system decides: leases, retries, webhooks, retention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.config.activities import Activity
from jobs.config.addresses import PrivateHost
from jobs.config.group import SettingsGroup
from jobs.retries import RetryPolicy

DAY_SECONDS = 86_400.0
"""Seconds of a day, in which some settings count."""


class RetryTimes(SettingsGroup):
    """How often and how patiently work that failed is tried again."""

    chunk_crashes: int = Field(default=2, ge=1)
    """Runner deaths on one chunk before it is cut in two to find the row that causes them."""
    chunk_attempts: int = Field(default=5, ge=1)
    """Tries of a chunk that fails by an error (not a death) before its rows become row errors."""
    job_crashes: int = Field(default=5, ge=1)
    """Runner deaths of one job outside any chunk, with no chunk recorded between, before the job fails."""
    retry_seconds: float = Field(default=1.0, gt=0)
    """First backoff; doubles each time, with jitter."""
    retry_max_seconds: float = Field(default=60.0, gt=0)
    """Longest backoff."""

    @property
    def chunk_policy(self) -> RetryPolicy:
        """When a chunk that an error kept from being computed is tried again."""
        return RetryPolicy(self.chunk_attempts, self.retry_seconds, self.retry_max_seconds)

    @property
    def job_policy(self) -> RetryPolicy:
        """When a job whose runner died outside any chunk is tried again."""
        return RetryPolicy(self.job_crashes, self.retry_seconds, self.retry_max_seconds)


class LeaseTimes(RetryTimes):
    """How long leases, doorbells, slots and runners may stay silent, and what follows for the work of a lost lease."""

    lease_seconds: float = Field(default=15.0, gt=0)
    """Life of a lease between heartbeats; a keeper renews it each quarter of this."""
    doorbell_seconds: float = Field(default=5.0, gt=0)
    """A granted lease that is not activated in this time is rung again."""
    doorbell_rings: int = Field(default=3, ge=1)
    """Unanswered rings after which the lease is expired and its slot is `unheard`."""
    preemptable_seconds: float = Field(default=300.0, ge=0)
    """How long a training has its slots at least before a job of the class `high` may have them."""
    slot_seconds: float = Field(default=15.0, gt=0)
    """A slot whose worker is silent for this long is offline."""
    sweep_seconds: float = Field(default=1.0, gt=0)
    """How often the reaper looks for dead leases, and the service's longest wait between two looks at the queue."""
    leader_seconds: float = Field(default=5.0, gt=0)
    """Life of the scheduler's leader lock between renewals."""
    grace_seconds: float = Field(default=10.0, gt=0)
    """Time a runner has to finish its chunk after a stop, before it is killed."""
    stall_seconds: float = Field(default=300.0, gt=0)
    """A runner that makes no progress with a chunk for this long (read, encode, forward, decode) is killed and its
    chunk retried. Other work has a multiple of it: recording results twice, loading a model and a training's steps and
    evaluations three times, its start, checkpoints and saving six times; each has at least five times what it took."""
    stall_limits: dict[Activity, Annotated[float, Field(gt=0)]] = Field(default={})
    """Limits of their own in seconds, the table `[stall_limits]` of `stoker.toml`: `load`, `read`, `encode`, `forward`,
    `decode`, `commit`, and of a training `start`, `step`, `evaluation`, `checkpoint`, `save`."""


class WebhookTimes(SettingsGroup):
    """Where deliveries of webhooks may go, and how often and how patiently they are tried."""

    webhook_private_hosts: list[PrivateHost] = Field(default=[])
    """Host names, addresses and networks that webhooks may go to although they are not public; empty: none."""
    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """Time that a receiver has to answer a delivery, connecting included."""
    webhook_attempts: int = Field(default=18, ge=1)
    """Tries of a delivery before it is given up; with the delays below, four to eight hours."""
    webhook_retry_seconds: float = Field(default=5.0, gt=0)
    """First delay between two tries; doubles each time, with jitter."""
    webhook_retry_max_seconds: float = Field(default=3600.0, gt=0)
    """Longest delay between two tries."""

    @property
    def webhook_policy(self) -> RetryPolicy:
        """When a delivery that failed is tried again."""
        return RetryPolicy(self.webhook_attempts, self.webhook_retry_seconds, self.webhook_retry_max_seconds)


class RetentionTimes(SettingsGroup):
    """How long and how much is kept."""

    upload_days: float = Field(default=30.0, gt=0)
    """Uploaded files are deleted after this many days, unless a live job reads them."""
    job_days: float = Field(default=0.0, ge=0)
    """Ended jobs and their results are deleted after this many days; 0 keeps them."""
    webhook_days: float = Field(default=30.0, gt=0)
    """Deliveries of webhooks are deleted from the log this many days after their end."""
    log_lines: int = Field(default=10_000, ge=0)
    """Log lines kept for one lease; the rest is dropped, and that is said."""
