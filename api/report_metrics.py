"""Metrics of reports: who listens to events and captures, and what got lost on the way to them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from firewall.reporting import Reporting

BY_STREAM = {
    "ebpf_fw_reports": ("read", "Reports of packets that came from the kernel"),
    "ebpf_fw_reports_suppressed": ("suppressed", "Reports that the rate limits held back"),
    "ebpf_fw_reports_lost_in_ring": ("lost_in_ring", "Reports that found no room in the ring buffer"),
    "ebpf_fw_reports_lost_by_listeners": ("lost_by_listeners", "Reports that listeners were too slow for"),
}


def of_reports(reporting: Reporting) -> Iterator[Metric]:
    """`stream`: events or capture."""
    yield GaugeMetricFamily(
        "ebpf_fw_report_listeners", "Who listens to events and captures", value=len(reporting.listeners)
    )
    totals = reporting.totals()
    for name, (field, text) in BY_STREAM.items():
        family = CounterMetricFamily(name, text, labels=("stream",))
        for stream, each in totals.items():
            family.add_metric((stream,), getattr(each, field))
        yield family
