"""/metrics: names and units as Prometheus wants them, bounded labels, and numbers that follow what happens."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from firewall import reads
from firewall.enforcer import Enforcer
from firewall.hits import Hits
from firewall.layout import REASONS, VERDICTS
from tests.api.client import ApiClient
from tests.memory_kernel import MemoryKernel

RULES = "/v1/rules"
# What each label's values can be at most, by what bounds them.
LABELS = {
    "hook": 2,
    "interface": 256,
    "verdict": len(VERDICTS),
    "reason": len(REASONS),
    "map": 16,
    "kind": 12,
    "stream": 2,
    "structure": 3,
    "rule": reads.MOST_MEASURED,
    "method": 8,
    "route": 40,
    "status": 6,
    "le": 14,
    "version": 1,
    "kernel": 1,
    "bcc": 1,
}
UNITS = ("seconds", "bytes", "packets", "entries", "rules", "requests", "reports", "info", "ratio")
# Counts of things that have no unit: how many there are, how often it happened, whether it is so.
PLAIN = {"ebpf_fw_ready", "ebpf_fw_drift", "ebpf_fw_drift_detected", "ebpf_fw_drift_healed"}
PLAIN |= {
    "ebpf_fw_change_failures",
    "ebpf_fw_rule_series_omitted",
    "ebpf_fw_panic",
    "ebpf_fw_report_listeners",
    "ebpf_fw_reports_suppressed",
    "ebpf_fw_reports_lost_in_ring",
    "ebpf_fw_reports_lost_by_listeners",
    "ebpf_fw_feed_failing",
    "ebpf_fw_feed_refusals",
    "ebpf_fw_crowdsec_state",
    "ebpf_fw_crowdsec_decisions",
    "ebpf_fw_crowdsec_skipped_decisions",
    "ebpf_fw_crowdsec_addresses",
}


@pytest.fixture
def settings() -> dict[str, object]:
    return {"bpf": {"max_addresses": 1000, "max_rules": 64}, "interfaces": [{"name": "eth0"}]}


def families(api: ApiClient) -> dict[str, Metric]:
    return {each.name: each for each in text_string_to_metric_families(api("GET", "/metrics").text)}


def ours(api: ApiClient) -> Iterator[Metric]:
    found = [each for each in families(api).values() if each.name.startswith("ebpf_fw_")]
    assert len(found) > 15
    yield from found


def value(api: ApiClient, name: str, **labels: str) -> float | None:
    for family in families(api).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def everything_happens(api: ApiClient) -> None:
    api("POST", RULES, {"id": "a", "sources": "10.0.0.1", "labels": {"metrics": "true"}})
    api("POST", RULES, {"id": "b", "destination_ports": 80})
    api("POST", RULES, {"id": "c", "destination_ports": 81, "enabled": False})
    api("POST", RULES, {"sources": "wrong"})
    api("GET", f"{RULES}/a")


# --- lint


def test_every_metric_has_help_type_and_a_unit(api: ApiClient) -> None:
    everything_happens(api)
    for metric in ours(api):
        assert metric.documentation, metric.name
        assert metric.type in ("counter", "gauge", "histogram"), metric.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        stem = metric.name.removesuffix("_total")
        assert stem in PLAIN or stem.endswith(UNITS), f"{metric.name} names no unit"
        for sample in metric.samples:
            if metric.type == "counter":
                assert sample.name.endswith("_total"), sample.name
            elif metric.type == "gauge":
                assert not sample.name.endswith(("_total", "_count", "_sum", "_bucket")), sample.name


def test_no_label_is_unbounded(api: ApiClient) -> None:
    everything_happens(api)
    for metric in ours(api):
        for sample in metric.samples:
            assert sample.labels.keys() <= LABELS.keys(), sample


def test_no_series_is_told_twice(api: ApiClient) -> None:
    everything_happens(api)
    series = [(s.name, *sorted(s.labels.items())) for metric in ours(api) for s in metric.samples]
    assert len(set(series)) == len(series)


def test_what_openmetrics_wants_is_told_as_well(api: ApiClient) -> None:
    everything_happens(api)
    answer = api("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.text.endswith("# EOF\n")
    assert {"ebpf_fw_packets", "ebpf_fw_build"} <= {each.name for each in parse_openmetrics(answer.text)}


# --- numbers


def test_requests_are_counted_by_route_and_class_on_the_short_way_too(api: ApiClient) -> None:
    everything_happens(api)
    api("GET", "/nowhere/at/all")
    api("DELETE", f"{RULES}/b")
    requests = "ebpf_fw_http_requests_total"
    one = "/v1/rules/{rule_id}"
    assert value(api, requests, method="POST", route=RULES, status="2xx") == 3
    assert value(api, requests, method="POST", route=RULES, status="4xx") == 1
    assert value(api, requests, method="GET", route=one, status="2xx") == 1
    assert value(api, requests, method="DELETE", route=one, status="2xx") == 1
    assert value(api, requests, method="GET", route="other", status="4xx") == 1
    assert value(api, "ebpf_fw_http_request_duration_seconds_count", method="POST", route=RULES) == 4


def test_paths_and_methods_that_clients_invent_make_no_series(api: ApiClient) -> None:
    def count() -> int:
        return sum(len(metric.samples) for metric in ours(api))

    api("GET", "/nowhere"), api("BREW", "/nowhere"), api("GET", f"{RULES}/x"), count()
    before = count()
    for number in range(20):
        api("GET", f"/nowhere/{number}")
        api("GET", f"{RULES}/none-{number}")
        api(f"BREW{number}", "/nowhere")
    assert count() == before


def test_changes_are_timed_by_kind_and_refusals_counted(api: ApiClient, kernel: MemoryKernel) -> None:
    everything_happens(api)
    kernel.fail_next = 1
    assert api("POST", RULES, {"sources": "10.0.0.9"}).status_code == 503
    api("POST", f"{RULES}/a/reset-counters")
    duration = "ebpf_fw_change_duration_seconds_count"
    assert value(api, duration, kind="add") == 4
    assert value(api, duration, kind="reset_counters") == 1
    assert value(api, "ebpf_fw_change_duration_seconds_bucket", kind="add", le="+Inf") == 4
    assert value(api, "ebpf_fw_change_failures_total", kind="add") == 1
    commits = value(api, "ebpf_fw_store_commit_duration_seconds_count")
    assert commits is not None and commits >= 3


def test_rules_are_counted_by_structure(api: ApiClient) -> None:
    everything_happens(api)
    rules = "ebpf_fw_structure_rules"
    assert [value(api, rules, structure=each) for each in ("address", "policy", "none")] == [1, 1, 1]


def test_only_rules_that_ask_for_it_have_series(
    api: ApiClient, enforcer: Enforcer, kernel: MemoryKernel
) -> None:
    everything_happens(api)
    kernel.hits[next(iter(kernel.entries.values())).handle] = Hits(7, 700, 1_700_000_000.0)
    assert value(api, "ebpf_fw_rule_packets_total", rule="a") == 7
    assert value(api, "ebpf_fw_rule_bytes_total", rule="a") == 700
    assert value(api, "ebpf_fw_rule_last_hit_timestamp_seconds", rule="a") == 1_700_000_000.0
    assert value(api, "ebpf_fw_rule_packets_total", rule="b") is None
    api("PATCH", f"{RULES}/a", {"labels": {"metrics": "false"}})
    assert value(api, "ebpf_fw_rule_packets_total", rule="a") is None


def test_labelled_rules_beyond_the_bound_are_counted(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MOST_MEASURED", 3)
    rules = [{"id": f"r{at}", "sources": f"10.0.0.{at}", "labels": {"metrics": "true"}} for at in range(5)]
    api("POST", f"{RULES}/batch", {"add": rules})
    (family,) = (each for each in ours(api) if each.name == "ebpf_fw_rule_packets")
    assert [sample.labels["rule"] for sample in family.samples] == ["r0", "r1", "r2"]
    assert value(api, "ebpf_fw_rule_series_omitted") == 2


def test_metrics_are_told_while_a_long_change_holds_the_lock(api: ApiClient, enforcer: Enforcer) -> None:
    everything_happens(api)
    assert value(api, "ebpf_fw_rule_packets_total", rule="a") == 0
    from threading import Event, Thread

    held, done = Event(), Event()

    def hold() -> None:
        with enforcer._lock:
            held.set()
            done.wait(30)

    changing = Thread(target=hold)
    changing.start()
    held.wait(30)
    try:
        assert value(api, "ebpf_fw_rule_packets_total", rule="a") == 0
    finally:
        done.set()
        changing.join()
