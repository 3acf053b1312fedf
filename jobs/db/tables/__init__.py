"""The SQLModel tables, one file per subject. Only functions in `jobs.ledger` change states. All times are Unix seconds.

`job_tables`, `cron_tables`, `slot_tables`, `share_tables`, `training_tables`, `forecast_tables` and `api_tables` define
them, with the column types of `columns`. Import the tables from here: then the metadata that a migration is compared
with is complete.
"""

from jobs.db.tables.api_tables import ApiKey, Batch, StoredFile, Webhook, WebhookDelivery
from jobs.db.tables.cron_tables import Cron
from jobs.db.tables.forecast_tables import ForecastError, ForecastRecord, SpeedRecord
from jobs.db.tables.job_tables import (
    IS_LEASED,
    Artifact,
    Chunk,
    Dependency,
    Event,
    Job,
    JobTotal,
    LeaseCounts,
    LogLine,
    Notice,
    ResultRecord,
)
from jobs.db.tables.share_tables import ProjectDay, ProjectUse
from jobs.db.tables.slot_tables import IS_LIVE, LeaderLock, Lease, PaddingVerdict, SafeBudget, Slot
from jobs.db.tables.training_tables import Attempt, Checkpoint, Metric, Rung

__all__ = [
    "IS_LEASED",
    "IS_LIVE",
    "ApiKey",
    "Artifact",
    "Attempt",
    "Batch",
    "Checkpoint",
    "Chunk",
    "Cron",
    "Dependency",
    "Event",
    "ForecastError",
    "ForecastRecord",
    "Job",
    "JobTotal",
    "LeaderLock",
    "Lease",
    "LeaseCounts",
    "LogLine",
    "Metric",
    "Notice",
    "PaddingVerdict",
    "ProjectDay",
    "ProjectUse",
    "ResultRecord",
    "Rung",
    "SafeBudget",
    "Slot",
    "SpeedRecord",
    "StoredFile",
    "Webhook",
    "WebhookDelivery",
]
