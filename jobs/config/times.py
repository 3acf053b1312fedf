"""Settings for time limits and counts: leases, retries, webhooks, retention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.config.activities import Activity
from jobs.config.addresses import PrivateHost
from jobs.config.group import SettingsGroup
from jobs.retries import RetryPolicy

DAY_SECONDS = 86_400.0
"""Number of seconds in a day; some settings are in days."""


class RetryTimes(SettingsGroup):
    """How often failed work is tried again, and after which delays."""

    chunk_crashes: int = Field(default=2, ge=1)
    """Number of runner deaths on one chunk after which it is split in two to find the row that causes them."""
    chunk_attempts: int = Field(default=5, ge=1)
    """Number of tries of a chunk that fails by an error (not a death) after which its rows become row errors."""
    job_crashes: int = Field(default=5, ge=1)
    """Number of runner deaths outside any chunk, with no chunk recorded in between, after which the job fails."""
    retry_seconds: float = Field(default=1.0, gt=0)
    """First delay between two tries; it doubles each time, with jitter."""
    retry_max_seconds: float = Field(default=60.0, gt=0)
    """Maximum delay between two tries."""

    @property
    def chunk_policy(self) -> RetryPolicy:
        """Retry policy for a chunk that failed by an error."""
        return RetryPolicy(self.chunk_attempts, self.retry_seconds, self.retry_max_seconds)

    @property
    def job_policy(self) -> RetryPolicy:
        """Retry policy for a job whose runner died outside any chunk."""
        return RetryPolicy(self.job_crashes, self.retry_seconds, self.retry_max_seconds)


class LeaseTimes(RetryTimes):
    """Time limits of leases, doorbells, slots and runners, and the retries after a lost lease."""

    lease_seconds: float = Field(default=15.0, gt=0)
    """Time after which a lease expires without a heartbeat; a keeper renews it four times as often."""
    doorbell_seconds: float = Field(default=5.0, gt=0)
    """Time after which the doorbell is rung again for a granted lease that is not active."""
    doorbell_rings: int = Field(default=3, ge=1)
    """Number of unanswered rings after which the lease expires and its slot becomes `unheard`."""
    preemptable_seconds: float = Field(default=300.0, ge=0)
    """Minimum time that a training keeps its slots before a job of the priority `high` may preempt it."""
    slot_seconds: float = Field(default=15.0, gt=0)
    """Time without a heartbeat of its worker after which a slot is offline."""
    sweep_seconds: float = Field(default=1.0, gt=0)
    """Interval at which the reaper looks for dead leases, and the maximum wait between two scheduling passes."""
    leader_seconds: float = Field(default=5.0, gt=0)
    """Time after which the scheduler's leader lock expires unless it is renewed."""
    grace_seconds: float = Field(default=10.0, gt=0)
    """Time that a runner has to finish its chunk after a stop request before it is killed."""
    stall_seconds: float = Field(default=300.0, gt=0)
    """Time without progress on a chunk (read, encode, forward, decode) after which its runner is killed and the chunk
    is retried. Other limits are multiples of it: twice for recording results; three times for loading a model and for
    a training's steps and evaluations; six times for its start, checkpoints and saving. Each limit is at least five
    times the longest duration that the activity took so far."""
    stall_limits: dict[Activity, Annotated[float, Field(gt=0)]] = Field(default={})
    """Limits in seconds for single activities, from the table `[stall_limits]` of `stoker.toml`: `load`, `read`,
    `encode`, `forward`, `decode`, `commit`, and for trainings `start`, `step`, `evaluation`, `checkpoint`, `save`."""


class WebhookTimes(SettingsGroup):
    """Where webhooks may be delivered, how often a delivery is tried, and after which delays."""

    webhook_private_hosts: list[PrivateHost] = Field(default=[])
    """Host names, addresses and networks that webhooks may call although they are not public."""
    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """Time in which a receiver must respond to a delivery, including the time to connect."""
    webhook_attempts: int = Field(default=18, ge=1)
    """Maximum number of tries of a delivery; with the default delays, they take four to eight hours."""
    webhook_retry_seconds: float = Field(default=5.0, gt=0)
    """First delay between two tries; it doubles each time, with jitter."""
    webhook_retry_max_seconds: float = Field(default=3600.0, gt=0)
    """Maximum delay between two tries."""

    @property
    def webhook_policy(self) -> RetryPolicy:
        """Retry policy for a delivery that failed."""
        return RetryPolicy(self.webhook_attempts, self.webhook_retry_seconds, self.webhook_retry_max_seconds)


class RetentionTimes(SettingsGroup):
    """How long files, jobs and deliveries are kept, and how many log lines."""

    upload_days: float = Field(default=30.0, gt=0)
    """Days after which uploaded files are deleted, unless a live job reads them."""
    job_days: float = Field(default=0.0, ge=0)
    """Days after which ended jobs and their results are deleted; 0 to keep them."""
    webhook_days: float = Field(default=30.0, gt=0)
    """Days after which ended deliveries of webhooks are deleted from the log."""
    log_lines: int = Field(default=10_000, ge=0)
    """Maximum number of log lines kept for one lease. The rest is dropped, and the log says so."""
