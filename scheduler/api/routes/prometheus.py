"""Metrics route for Prometheus, read from the database at each scrape, so that all API processes report the same."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from jobs.specs.inference import Priority
from scheduler.admin.metrics import Snapshot, snapshot
from scheduler.admin.version import version
from scheduler.api.access.auth import Credentials, bearer, check_host, is_loopback, require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses

_QUANTILES = (0.1, 0.5, 0.9)

router = APIRouter(tags=["metrics"], responses=error_responses(403))


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Metrics in Prometheus' text format.",
        }
    },
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
        yield InfoMetricFamily("stoker", "The running version of Stoker.", value={"version": version()})
        jobs = GaugeMetricFamily("stoker_jobs", "Jobs by state.", labels=["state"])
        for job_state, number in reading.jobs.items():
            jobs.add_metric([job_state.value], number)
        yield jobs
        slots = GaugeMetricFamily("stoker_slots", "Slots by state.", labels=["state"])
        for slot_state, number in reading.slots.items():
            slots.add_metric([slot_state.value], number)
        yield slots
        yield GaugeMetricFamily("stoker_slots_busy", "Online slots that hold a lease.", value=reading.slots_busy)
        yield GaugeMetricFamily("stoker_leased_chunks", "Chunks that slots work on now.", value=reading.leased_chunks)
        yield GaugeMetricFamily(
            "stoker_rows_waiting",
            "Rows of queued and running inference jobs that are not recorded yet.",
            value=reading.rows_waiting,
        )
        rows = GaugeMetricFamily("stoker_rows", "Rows recorded for all jobs that are not deleted.", labels=["outcome"])
        rows.add_metric(["output"], reading.rows_done - reading.rows_failed)
        rows.add_metric(["error"], reading.rows_failed)
        yield rows
        yield GaugeMetricFamily(
            "stoker_tokens", "Tokens that the models saw for those rows.", value=reading.tokens_done
        )
        yield GaugeMetricFamily(
            "stoker_oldest_wait_seconds",
            "Seconds that the oldest queued job has waited.",
            value=reading.oldest_wait_seconds,
        )
        yield from self._forecasts()

    def _forecasts(self) -> Iterator[Metric]:
        labels = ["priority", "what"]
        numbers = GaugeMetricFamily(
            "stoker_forecasts_compared", "Latest forecasts that were compared with what happened.", labels=labels
        )
        ratios = GaugeMetricFamily(
            "stoker_forecast_ratio",
            "Quantiles of (actual + 60 s) / (forecast + 60 s) of those forecasts.",
            labels=[*labels, "quantile"],
        )
        inside = GaugeMetricFamily(
            "stoker_forecast_inside",
            "Share of them that happened within their interval; 0.8 is aimed at.",
            labels=labels,
        )
        for (rank, what), accuracy in sorted(self._reading.forecasts.items()):
            kind = [list(Priority)[rank].value, what.value]
            numbers.add_metric(kind, len(accuracy.ratios))
            for quantile in _QUANTILES:
                ratios.add_metric([*kind, str(quantile)], accuracy.quantile(quantile))
            if accuracy.share_inside is not None:
                inside.add_metric(kind, accuracy.share_inside)
        yield from (numbers, ratios, inside)
