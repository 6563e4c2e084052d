"""Rules about addresses that never_drop spares: they are told to decide nothing, and why."""

from __future__ import annotations

import pytest

from tests.api.client import ApiClient

RULES, ANALYSIS = "/v1/rules", "/v1/analysis"
SPARED = [
    {"id": "host", "sources": "10.9.0.9"},
    {"id": "port", "sources": "10.9.0.16/28", "protocols": "tcp", "destination_ports": 22},
]


@pytest.fixture
def settings() -> dict[str, object]:
    return {
        "filter": {"never_drop": ["10.9.0.0/24", "10.9.0.0/28"]},
        "bpf": {"max_addresses": 1000, "max_rules": 64},
        "interfaces": [{"name": "eth0"}],
    }


@pytest.mark.parametrize("rule", SPARED, ids=lambda rule: rule["id"])
def test_a_rule_that_never_drop_spares_is_warned_of(api: ApiClient, rule: dict[str, object]) -> None:
    (warning,) = api("POST", RULES, rule).json()["warnings"]
    assert (warning["code"], warning["rule"]) == ("never_drop", None)
    (found,) = api("GET", ANALYSIS).json()["items"]
    assert (found["id"], found["code"]) == (rule["id"], "never_drop")


def test_a_rule_beyond_the_spared_addresses_is_not(api: ApiClient) -> None:
    assert api("POST", RULES, {"id": "net", "sources": "10.0.0.0/8"}).json()["warnings"] == []
    assert api("GET", ANALYSIS).json()["items"] == []


def test_spared_addresses_are_no_rules(api: ApiClient) -> None:
    assert api("GET", RULES).json()["total"] == 0
    assert api("GET", f"{RULES}?address=10.9.0.9").json()["items"] == []
    assert api("GET", f"{RULES}?unused_for=1s").json()["items"] == []
    assert api("GET", "/v1/status").json()["never_drop"] == ["10.9.0.0/24", "10.9.0.0/28"]
