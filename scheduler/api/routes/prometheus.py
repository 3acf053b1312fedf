"""Metrics route for Prometheus, read from the database at each scrape, so that all API processes report the same."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from scheduler.admin.metrics import Snapshot, snapshot
from scheduler.admin.version import version
from scheduler.api.auth import Credentials, bearer, check_host, is_loopback, require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses

router = APIRouter(tags=["metrics"], responses=error_responses(403))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text."}},
    openapi_extra={"security": [{bearer.scheme_name: []}, {}]},  # a key or None
)
def get_metrics(request: Request, context: InContext, credentials: Credentials) -> Response:
    """Metrics in Prometheus' text format. Needs a key unless the API is bound to loopback only."""
    if is_loopback(context.settings.host):
        check_host(request, context, credentials)
    else:
        require_key(context, credentials)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot(context.database)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _SnapshotCollector(Collector):
    """One snapshot as Prometheus metric families. All are gauges: rows and tokens decrease when jobs are deleted."""

    def __init__(self, reading: Snapshot) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """The metric families of the snapshot."""
        reading = self._reading
        yield InfoMetricFamily("stoker", "The version that runs.", value={"version": version()})
        jobs = GaugeMetricFamily("stoker_jobs", "Jobs by state.", labels=["state"])
        for job_state, number in reading.jobs.items():
            jobs.add_metric([job_state.value], number)
        yield jobs
        slots = GaugeMetricFamily("stoker_slots", "Slots by state.", labels=["state"])
        for slot_state, number in reading.slots.items():
            slots.add_metric([slot_state.value], number)
        yield slots
        yield GaugeMetricFamily("stoker_slots_busy", "Online slots that hold a lease.", value=reading.slots_busy)
        chunks = GaugeMetricFamily("stoker_chunks", "Chunks of queued and running jobs by state.", labels=["state"])
        chunks.add_metric(["pending"], reading.pending_chunks)
        chunks.add_metric(["leased"], reading.leased_chunks)
        yield chunks
        rows = GaugeMetricFamily("stoker_rows", "Rows recorded for all jobs that are not deleted.", labels=["outcome"])
        rows.add_metric(["output"], reading.rows_done - reading.rows_failed)
        rows.add_metric(["error"], reading.rows_failed)
        yield rows
        yield GaugeMetricFamily(
            "stoker_tokens", "Tokens that the models saw for those rows.", value=reading.tokens_done
        )
        yield GaugeMetricFamily(
            "stoker_oldest_wait_seconds", "Age of the oldest queued job in seconds.", value=reading.oldest_wait_seconds
        )
