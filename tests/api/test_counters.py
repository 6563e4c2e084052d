"""Resetting a rule's counters and listing rules that are unused, over HTTP."""

from __future__ import annotations

import pytest

from firewall.hits import Hits
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel

RULES = "/v1/rules"


def hit(kernel: MemoryKernel, packets: int, last_hit: float = 1_700_000_000.0) -> None:
    (entry,) = kernel.entries.values()
    kernel.hits[entry.handle] = Hits(packets, 100 * packets, last_hit)


def test_reset_counters_answers_the_rule_with_zeros(api: ApiClient, kernel: MemoryKernel) -> None:
    api("POST", RULES, {"id": "host", "sources": "203.0.113.7"})
    hit(kernel, 7)
    before = api("GET", f"{RULES}/host").json()
    assert before["stats"]["packets"] == 7 and before["stats"]["last_hit"] is not None
    answer = api("POST", f"{RULES}/host/reset-counters")
    assert answer.status_code == 200
    assert answer.json() == {**before, "stats": {"packets": 0, "bytes": 0, "last_hit": None}}
    hit(kernel, 9)
    assert api("GET", f"{RULES}/host").json()["stats"]["packets"] == 2


def test_only_a_rule_that_is_there_can_be_reset(api: ApiClient) -> None:
    missing = api("POST", f"{RULES}/nobody/reset-counters")
    assert (missing.status_code, missing.json()["code"]) == (404, "rule_not_found")
    api("POST", RULES, {"id": "host", "sources": "203.0.113.7"})
    assert api("POST", f"{RULES}/host/reset-counters?what=1").json()["code"] == "invalid_query"
    assert api("GET", f"{RULES}/host/reset-counters").status_code == 405


def test_a_rule_may_be_named_as_the_call(api: ApiClient) -> None:
    api("POST", RULES, {"id": "reset-counters", "sources": "203.0.113.7"})
    assert api("POST", f"{RULES}/reset-counters/reset-counters").status_code == 200


@pytest.mark.parametrize("duration", ["", "0", "30x", "-1", "11y", "1d ", "never"])
def test_a_wrong_duration_is_refused_by_name(api: ApiClient, duration: str) -> None:
    answer = api("GET", RULES, params={"unused_for": duration})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_query")
    assert pointers(answer) == ["?unused_for"]


def test_a_rule_that_was_just_made_is_not_unused(api: ApiClient) -> None:
    api("POST", RULES, {"id": "host", "sources": "203.0.113.7"})
    page = api("GET", f"{RULES}?unused_for=30d&action=drop&address=203.0.113.7").json()
    assert (page["items"], page["total"]) == ([], 0)
