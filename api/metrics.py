"""/metrics for Prometheus, read from the enforcer when it is scraped.

Owns the metrics' names, which are part of the contract. Counts nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.openapi import problems
from api.running import Running
from firewall.drift import KINDS
from firewall.view import CounterView, StatusView

router = APIRouter(tags=["status"])
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
        yield from _gauges(status)
        yield from _traffic(self._running.firewall.counters())


def _gauges(status: StatusView) -> Iterator[Metric]:
    build = {"version": status.version, "kernel": status.kernel, "bcc": status.bcc or ""}
    yield InfoMetricFamily("ebpf_fw_build", "Versions of the service and what it stands on", value=build)
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
        family = CounterMetricFamily(name, text, labels=("kind",))
        for kind in KINDS:
            family.add_metric((kind,), counts.get(kind, 0))
        yield family


def _traffic(counters: list[CounterView]) -> Iterator[Metric]:
    packets = CounterMetricFamily("ebpf_fw_packets", "Packets by verdict and reason", labels=LABELS)
    size = CounterMetricFamily("ebpf_fw_bytes", "Bytes by verdict and reason", labels=LABELS)
    for each in counters:
        labels = (each.hook, each.interface, each.verdict, each.reason)
        packets.add_metric(labels, each.packets)
        size.add_metric(labels, each.bytes)
    yield packets
    yield size


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
