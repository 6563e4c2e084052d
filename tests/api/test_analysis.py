"""Warnings beside the answer to a change, and /v1/analysis about all rules."""

from __future__ import annotations

from typing import Any

import pytest

from firewall.enforcer import Enforcer
from tests.api.client import ApiClient
from tests.memory_kernel import MemoryKernel

RULES, ANALYSIS = "/v1/rules", "/v1/analysis"


@pytest.fixture
def settings() -> dict[str, object]:
    return {"bpf": {"max_addresses": 1000, "max_rules": 64}, "interfaces": [{"name": "eth0"}]}


def add(api: ApiClient, **rule: Any) -> list[dict[str, Any]]:
    """The warnings."""
    answer = api("POST", RULES, rule)
    assert answer.status_code == 201, answer.text
    warnings: list[dict[str, Any]] = answer.json()["warnings"]
    return warnings


def codes(warnings: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(each["code"], each["rule"]) for each in warnings]


def test_a_rule_that_decides_has_no_warnings(api: ApiClient) -> None:
    assert add(api, id="a", sources="10.0.0.1") == []
    assert add(api, id="b", destination_ports=80) == []
    assert api("GET", ANALYSIS).json()["items"] == []


def test_an_address_behind_a_network_is_warned_of_on_the_short_way(api: ApiClient) -> None:
    add(api, id="net", sources="10.0.0.0/8", action="allow", priority=1)
    (warning,) = add(api, id="host", sources="10.1.2.3")
    assert (warning["code"], warning["rule"]) == ("shadowed", "net")
    assert "'net'" in warning["detail"]


@pytest.mark.parametrize("first", [{"sources": "10.0.0.0/8"}, {"destination_ports": 80}])
def test_the_same_rule_under_another_id_is_a_duplicate(api: ApiClient, first: dict[str, Any]) -> None:
    add(api, id="one", **first)
    assert codes(add(api, id="two", **first)) == [("duplicate", "one")]
    assert codes(add(api, id="better", priority=1, **first)) == [("duplicate", "one")]


def test_the_same_rule_again_is_answered_with_its_warnings(api: ApiClient) -> None:
    add(api, id="everything", action="allow", priority=1)
    body = {"id": "host", "sources": "10.1.2.3"}
    assert codes(api("POST", RULES, body).json()["warnings"]) == [("shadowed", "everything")]
    again = api("POST", RULES, body)
    assert again.status_code == 200 and codes(again.json()["warnings"]) == [("shadowed", "everything")]


def test_put_and_patch_warn_as_post_does(api: ApiClient) -> None:
    add(api, id="net", sources="10.0.0.0/8", action="allow", priority=1)
    add(api, id="host", sources="192.0.2.1")
    put = api("PUT", f"{RULES}/host", {"sources": "10.1.2.3"})
    assert codes(put.json()["warnings"]) == [("shadowed", "net")]
    patch = api("PATCH", f"{RULES}/host", {"priority": 0})
    assert patch.json()["warnings"] == []


def test_an_imported_network_warns_of_hosts_behind_it(api: ApiClient) -> None:
    query = f"{RULES}/import?action=allow&priority=1"
    api("POST", query, content=b"10.0.0.0/8\n", headers={"Content-Type": "text/plain"})
    ((code, other),) = codes(add(api, sources="10.1.2.3"))
    assert code == "shadowed" and other is not None and other.startswith("import-")


def test_interfaces_that_are_not_there_are_told_and_those_that_are_present_are_not(api: ApiClient) -> None:
    assert codes(add(api, interfaces=["ppp*"], protocols="tcp")) == [("no_interface", None)]
    assert add(api, interfaces=["eth1"], protocols="udp") == []


def test_a_rule_that_no_packet_can_match_is_told(api: ApiClient) -> None:
    assert codes(add(api, sources="10.0.0.1", destinations="::1")) == [("matches_nothing", None)]
    assert codes(add(api, id="family", sources="10.0.0.1", family="ipv6")) == [("matches_nothing", None)]
    assert {each["code"] for each in api("GET", ANALYSIS).json()["items"]} == {"matches_nothing"}
    assert api("GET", ANALYSIS).json()["total"] == 2


def test_an_expired_rule_is_told(api: ApiClient) -> None:
    assert codes(add(api, sources="10.0.0.1", expires_at="2020-01-01T00:00:00Z")) == [("expired", None)]


def test_a_disabled_rule_is_not_accused(api: ApiClient) -> None:
    add(api, id="everything", priority=1)
    assert add(api, id="host", sources="10.1.2.3", enabled=False) == []


def test_batches_and_rule_sets_warn_by_rule(api: ApiClient) -> None:
    rules = [{"id": "all", "priority": 1}, {"id": "host", "sources": "10.1.2.3", "action": "allow"}]
    expected = [("host", "shadowed", "all")]
    batch = api("POST", f"{RULES}/batch", {"add": rules}).json()
    assert [(each["id"], each["code"], each["rule"]) for each in batch["warnings"]] == expected
    replaced = api("PUT", "/v1/ruleset", {"rules": [*rules[:1], {**rules[1], "description": "x"}]}).json()
    assert [(each["id"], each["code"], each["rule"]) for each in replaced["warnings"]] == expected


def test_many_warnings_are_bounded(api: ApiClient) -> None:
    rules = [{"id": "all", "priority": 1}, *({"sources": f"10.0.0.{at}"} for at in range(150))]
    assert len(api("POST", f"{RULES}/batch", {"add": rules}).json()["warnings"]) == 100
    assert api("GET", ANALYSIS).json()["total"] == 150


def test_the_analysis_is_paged_in_order_of_creation_and_follows_changes(api: ApiClient) -> None:
    add(api, id="net", sources="10.0.0.0/8", action="allow", priority=1)
    for at in range(5):
        add(api, id=f"host-{at}", sources=f"10.0.0.{at}")
    page = api("GET", f"{ANALYSIS}?page=2&page_size=2").json()
    assert [each["id"] for each in page["items"]] == ["host-2", "host-3"]
    assert (page["total"], page["total_pages"]) == (5, 3)
    assert {each["rule"] for each in page["items"]} == {"net"}
    api("DELETE", f"{RULES}/net")
    assert api("GET", ANALYSIS).json()["total"] == 0


def test_unknown_parameters_of_the_analysis_are_refused(api: ApiClient) -> None:
    assert api("GET", f"{ANALYSIS}?page=0").json()["code"] == "invalid_query"
    assert api("GET", f"{ANALYSIS}?what=1").json()["code"] == "invalid_query"


def test_warnings_can_be_sent_back_and_have_no_effect(api: ApiClient) -> None:
    add(api, id="all", priority=1)
    answer = api("POST", RULES, {"id": "host", "sources": "10.0.0.1"}).json()
    assert api("PUT", f"{RULES}/host", answer).json() == answer


def test_a_change_stays_made_where_looking_for_warnings_fails(
    api: ApiClient, enforcer: Enforcer, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(enforcer, "_warnings", fail)
    assert add(api, id="host", sources="10.0.0.1") == []
    assert len(kernel.entries) == 1
