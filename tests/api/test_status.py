"""/v1/status, /v1/counters, /healthz, /readyz and /metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.running import Phase
from tests.api.client import ApiClient
from tests.memory_kernel import memory_enforcer


def samples(api: ApiClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(api("GET", "/metrics").text)
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for family in families
        for each in family.samples
    }


def test_the_status_counts_rules_and_map_entries(api: ApiClient) -> None:
    api("PUT", "/v1/interfaces/eth0")
    api("POST", "/v1/rules", {"sources": "203.0.113.7"})
    status = api("GET", "/v1/status").json()
    assert (status["ready"], status["not_ready"], status["rules"]) == (True, [], 1)
    assert status["default_actions"] == {"ingress": "allow", "egress": "allow"}
    assert [(hook["interface"], hook["hook"]) for hook in status["hooks"]] == [
        ("eth0", "ingress"),
        ("eth0", "egress"),
    ]
    fills = {each["name"]: each for each in status["maps"]}
    assert (fills["address4"]["used"], fills["address4"]["capacity"]) == (1, 1000)
    assert fills["address4"]["setting"] == "bpf.max_addresses"


def test_the_counters_are_by_hook_interface_verdict_and_reason(api: ApiClient) -> None:
    api("PUT", "/v1/interfaces/eth0")
    drop = {"hook": "ingress", "interface": "eth0", "verdict": "drop", "reason": "rule"}
    assert {**drop, "packets": 7, "bytes": 700} in api("GET", "/v1/counters").json()["items"]


def test_the_service_is_alive_and_ready(api: ApiClient) -> None:
    assert api("GET", "/healthz").json() == {"status": "alive"}
    assert api("GET", "/readyz").json() == {"status": "ready", "panic": False}


def test_a_hook_that_lost_its_program_is_not_ready_and_says_why(tmp_path: Path) -> None:
    enforcer, kernel = memory_enforcer(
        tmp_path, {"service": {"on_drift": "report"}, "interfaces": [{"name": "eth0"}]}
    )
    with ApiClient(create_app(enforcer)) as api:
        assert api("GET", "/readyz").status_code == 200
        del kernel.hooks["eth0", 1]
        refused = api("GET", "/readyz")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "eth0" in refused.json()["errors"][0]["detail"]
        assert api("GET", "/v1/status").json()["ready"] is False
        assert samples(api)["ebpf_fw_ready", frozenset()] == 0
    enforcer.stop()


@pytest.mark.parametrize("phase", ["starting", "stopping"])
def test_until_it_runs_the_service_is_alive_and_nothing_else(tmp_path: Path, phase: Phase) -> None:
    enforcer, _ = memory_enforcer(tmp_path)
    with ApiClient(create_app(enforcer, phase=phase)) as api:
        assert api("GET", "/healthz").status_code == 200
        for method, path in (
            ("GET", "/readyz"),
            ("GET", "/v1/rules"),
            ("POST", "/v1/rules"),
            ("GET", "/v1/status"),
        ):
            refused = api(method, path, {} if method == "POST" else None)
            assert (refused.status_code, refused.json()["code"]) == (503, phase)
        assert samples(api)["ebpf_fw_ready", frozenset()] == 0
        assert api("GET", "/openapi.json").status_code == 200
    enforcer.stop()


def test_the_metrics_have_their_documented_names(api: ApiClient) -> None:
    api("PUT", "/v1/interfaces/eth0")
    api("POST", "/v1/rules", {"sources": "203.0.113.7"})
    found = samples(api)
    drop = frozenset({"hook": "ingress", "interface": "eth0", "verdict": "drop", "reason": "rule"}.items())
    assert found["ebpf_fw_packets_total", drop] == 7
    assert found["ebpf_fw_bytes_total", drop] == 700
    assert found["ebpf_fw_ready", frozenset()] == 1
    assert found["ebpf_fw_rules", frozenset()] == 1
    address4 = frozenset({("map", "address4")})
    assert found["ebpf_fw_map_entries", address4] == 1
    assert found["ebpf_fw_map_capacity_entries", address4] == 1000
    build = next(dict(labels) for name, labels in found if name == "ebpf_fw_build_info")
    assert build["bcc"] == "0.0-memory"
    assert ("process_resident_memory_bytes", frozenset()) in found


def test_metrics_come_in_the_format_that_is_asked_for(api: ApiClient) -> None:
    assert api("GET", "/metrics").headers["content-type"].startswith("text/plain; version=")
    openmetrics = api("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
