"""/metrics for Prometheus, read from the enforcer when it is scraped.

Owns the metrics' names, which are part of the contract, and their bounds: no label's values grow with the rules or with
what clients send. Counts nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.list_metrics import of_lists
from api.openapi import problems
from api.report_metrics import of_reports
from api.running import Running
from firewall.drift import KINDS
from firewall.timings import BOUNDS, Timing
from firewall.view import StatusView

router = APIRouter(tags=["status"])
MOST_SETS = 300
LABELS = ("hook", "interface", "verdict", "reason")


class FirewallCollector(Collector):
    """While the service starts or stops there is only ebpf_fw_ready, and it is 0."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def describe(self) -> list[Metric]:
        """Nothing: or the registry would scrape when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("ebpf_fw_ready", "1 when /readyz answers 200")
        if self._running.phase != "running":
            ready.add_metric([], 0)
            yield ready
            return
        status = self._running.firewall.status()
        ready.add_metric([], status.ready)
        yield ready
        yield from _service(status)
        for part in PARTS:
            yield from part(self._running)


def _service(status: StatusView) -> Iterator[Metric]:
    build = {"version": status.version, "kernel": status.kernel, "bcc": status.bcc or ""}
    yield InfoMetricFamily("ebpf_fw_build", "Versions of the service and what it stands on", value=build)
    yield GaugeMetricFamily(
        "ebpf_fw_start_time_seconds", "When the service started, since 1970", value=status.started_at
    )
    yield GaugeMetricFamily("ebpf_fw_rules", "Rules that are kept, disabled ones too", value=status.rules)
    yield GaugeMetricFamily("ebpf_fw_panic", "1 while panic blocks nearly everything", value=status.panic.on)
    used = GaugeMetricFamily("ebpf_fw_map_entries", "Entries in a map", labels=("map",))
    capacity = GaugeMetricFamily(
        "ebpf_fw_map_capacity_entries", "Entries that a map can hold", labels=("map",)
    )
    for each in status.maps:
        used.add_metric((each.name,), each.used)
        capacity.add_metric((each.name,), each.capacity)
    yield used
    yield capacity
    yield GaugeMetricFamily(
        "ebpf_fw_drift", "Places that are not as the service left them", value=len(status.drift)
    )
    for name, text, counts in (
        ("ebpf_fw_drift_detected", "Changes by others that were noticed", status.drift_detected),
        ("ebpf_fw_drift_healed", "Changes by others that were undone", status.drift_healed),
    ):
        yield _counter(name, text, ("kind",), [((kind,), counts.get(kind, 0)) for kind in KINDS])


def _structures(running: Running) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "ebpf_fw_structure_rules", "Rules by what holds them in the kernel", labels=("structure",)
    )
    for structure, count in running.firewall.rules_by_structure().items():
        family.add_metric((structure,), count)
    yield family


def _sets(running: Running) -> Iterator[Metric]:
    """Of the first sets by name."""
    family = GaugeMetricFamily("ebpf_fw_set_entries", "Entries of a set", labels=("set",))
    sizes = sorted(running.firewall.set_sizes().items())
    for name, count in sizes[:MOST_SETS]:
        family.add_metric((name,), count)
    yield family


def _traffic(running: Running) -> Iterator[Metric]:
    counters = running.firewall.counters()
    places = [(each.hook, each.interface, each.verdict, each.reason) for each in counters]
    packets = zip(places, (each.packets for each in counters), strict=True)
    size = zip(places, (each.bytes for each in counters), strict=True)
    yield _counter("ebpf_fw_packets", "Packets by verdict and reason", LABELS, packets)
    yield _counter("ebpf_fw_bytes", "Bytes by verdict and reason", LABELS, size)


def _measured_rules(running: Running) -> Iterator[Metric]:
    """Of rules that ask for it by the label metrics=true."""
    measured = running.firewall.measured()
    packets = [((each.rule.id,), each.packets) for each in measured.rules]
    size = [((each.rule.id,), each.bytes) for each in measured.rules]
    yield _counter("ebpf_fw_rule_packets", "Packets for which a labelled rule won", ("rule",), packets)
    yield _counter("ebpf_fw_rule_bytes", "Bytes of these packets", ("rule",), size)
    last = GaugeMetricFamily(
        "ebpf_fw_rule_last_hit_timestamp_seconds", "When a labelled rule last won", labels=("rule",)
    )
    for each in measured.rules:
        if each.last_hit is not None:
            last.add_metric((each.rule.id,), each.last_hit)
    yield last
    yield GaugeMetricFamily(
        "ebpf_fw_rule_series_omitted", "Labelled rules beyond those that are told", value=measured.omitted
    )


def _changes(running: Running) -> Iterator[Metric]:
    changes = [((kind,), each.read()) for kind, each in running.changes.items()]
    text = "From a change being asked for until it is durable and in the kernel, or refused"
    yield _histogram("ebpf_fw_change_duration_seconds", text, ("kind",), changes)
    refused = [((kind,), count) for kind, count in running.refused.items()]
    yield _counter("ebpf_fw_change_failures", "Changes that were refused or failed", ("kind",), refused)
    text = "Until a change was on the disk"
    yield _histogram("ebpf_fw_store_commit_duration_seconds", text, (), [((), running.firewall.commits)])


def _requests(running: Running) -> Iterator[Metric]:
    requests = running.requests
    labels = ("method", "route", "status")
    yield _counter(
        "ebpf_fw_http_requests", "Requests by class of status", labels, requests.answered().items()
    )
    text = "How long answers took"
    yield _histogram("ebpf_fw_http_request_duration_seconds", text, labels[:2], requests.took().items())


def _reports(running: Running) -> Iterator[Metric]:
    return of_reports(running.firewall.reporting)


# What is told beside the status.
PARTS: tuple[Callable[[Running], Iterator[Metric]], ...] = (
    _structures,
    _sets,
    _traffic,
    _measured_rules,
    _changes,
    _requests,
    _reports,
    of_lists,
)


def _counter(
    name: str, text: str, labels: Iterable[str], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=tuple(labels))
    for place, value in values:
        family.add_metric(place, value)
    return family


def _histogram(
    name: str, text: str, labels: Iterable[str], values: Iterable[tuple[tuple[str, ...], Timing]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=tuple(labels))
    for place, timing in values:
        up_to, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), timing.counts, strict=True):
            up_to += count
            buckets.append((bound, up_to))
        family.add_metric(place, buckets, timing.total_s)
    return family


def registry_of(running: Running) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(FirewallCollector(running))
    ProcessCollector(registry=registry)
    return registry


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(421),
    },
    summary="Metrics for Prometheus",
)
def read_metrics(request: Request) -> Response:
    """In the text format of Prometheus or of OpenMetrics, as the client asks."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics), headers={"Content-Type": media_type})
