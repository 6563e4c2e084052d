"""/v1/sets over the real store and a kernel in memory: what clients send, are answered, and what the kernel gets."""

from __future__ import annotations

from typing import Any

import pytest

from firewall.address import parse_prefix
from firewall.enforcer import Enforcer
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel

NOBODY = {"added": 0, "removed": 0, "refreshed": 0, "unchanged": 0, "missing": 0}


def in_kernel(kernel: MemoryKernel) -> dict[str, int]:
    """Handles by prefix, of sources at ingress."""
    return {
        str(parse_prefix(f"{address_of(key)}/{key.length}")): entry.handle
        for key, entry in kernel.entries.items()
        if key.scope == 0
    }


def address_of(key: Any) -> str:
    from firewall.address import format_address

    return format_address(key.version, key.address)


@pytest.fixture
def blocked(api: ApiClient) -> ApiClient:
    """With a set of that name, which a rule names."""
    assert api("PUT", "/v1/sets/blocked").status_code == 201
    assert api("POST", "/v1/rules", {"id": "r", "sources": ["@blocked"]}).status_code == 201
    return api


def test_a_set_is_made_described_listed_and_deleted(api: ApiClient) -> None:
    made = api("PUT", "/v1/sets/a", {"description": "first"})
    assert (made.status_code, made.headers["Location"]) == (201, "/v1/sets/a")
    assert made.json()["source"] == "api" and made.json()["entries"] == 0
    assert api("PUT", "/v1/sets/a").status_code == 200
    assert api("GET", "/v1/sets/a").json()["description"] == "first"
    assert api("PUT", "/v1/sets/a", {"description": "second"}).json()["description"] == "second"
    api("PUT", "/v1/sets/b")
    page = api("GET", "/v1/sets?page_size=1&page=2").json()
    assert ([each["name"] for each in page["items"]], page["total"]) == (["b"], 2)
    assert api("DELETE", "/v1/sets/a").status_code == 204
    assert api("GET", "/v1/sets/a").json()["code"] == "set_not_found"


def test_entries_come_and_go_one_or_many(blocked: ApiClient, kernel: MemoryKernel) -> None:
    body = {"entries": ["203.0.113.7", "198.51.100.0/24", "2001:db8::/32"]}
    assert blocked("POST", "/v1/sets/blocked/entries", body).json() == {**NOBODY, "added": 3}
    assert in_kernel(kernel).keys() == {"203.0.113.7", "198.51.100.0/24", "2001:db8::/32"}
    again = blocked("POST", "/v1/sets/blocked/entries", body).json()
    assert again == {**NOBODY, "unchanged": 3}
    gone = blocked("DELETE", "/v1/sets/blocked/entries?address=203.0.113.7&address=203.0.113.8").json()
    assert gone == {**NOBODY, "removed": 1, "missing": 1}
    gone = blocked("DELETE", "/v1/sets/blocked/entries", {"entries": ["2001:db8::/32"]}).json()
    assert gone == {**NOBODY, "removed": 1}
    assert in_kernel(kernel).keys() == {"198.51.100.0/24"}
    assert blocked("GET", "/v1/sets/blocked").json()["entries"] == 1


def test_replacing_brings_and_takes_what_differs(blocked: ApiClient, kernel: MemoryKernel) -> None:
    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1", "10.0.0.2"], "comment": "old"})
    before = blocked("GET", "/v1/sets/blocked/entries?address=10.0.0.2").json()["items"][0]
    outcome = blocked("PUT", "/v1/sets/blocked/entries", {"entries": ["10.0.0.2", "10.0.0.3"]}).json()
    assert outcome == {"added": 1, "removed": 1, "refreshed": 1, "unchanged": 0, "missing": 0}
    assert in_kernel(kernel).keys() == {"10.0.0.2", "10.0.0.3"}
    after = blocked("GET", "/v1/sets/blocked/entries?address=10.0.0.2").json()["items"][0]
    assert after["created_at"] == before["created_at"] and after["comment"] is None
    assert blocked("PUT", "/v1/sets/blocked/entries", {"entries": ["10.0.0.2", "10.0.0.3"]}).json() == {
        **NOBODY,
        "unchanged": 2,
    }
    assert blocked("PUT", "/v1/sets/blocked/entries", {"entries": []}).json() == {**NOBODY, "removed": 2}
    assert not kernel.entries


def test_adding_again_refreshes_the_ttl_and_keeps_a_comment(blocked: ApiClient) -> None:
    add = "/v1/sets/blocked/entries"
    blocked("POST", add, {"entries": [{"address": "10.0.0.1", "ttl": 60, "comment": "scanner"}]})
    first = blocked("GET", add).json()["items"][0]
    assert blocked("POST", add, {"entries": ["10.0.0.1"], "ttl": "1h"}).json() == {**NOBODY, "refreshed": 1}
    second = blocked("GET", add).json()["items"][0]
    assert second["expires_at"] > first["expires_at"] and second["comment"] == "scanner"
    assert blocked("POST", add, {"entries": ["10.0.0.1"]}).json() == {**NOBODY, "refreshed": 1}
    assert blocked("GET", add).json()["items"][0]["expires_at"] is None


def test_an_entry_that_is_given_twice_counts_once_as_it_is_given_last(blocked: ApiClient) -> None:
    entries = [
        {"address": "10.0.0.1", "comment": "one"},
        {"address": "10.0.0.1", "comment": "two"},
        "10.0.0.2",
    ]
    assert blocked("POST", "/v1/sets/blocked/entries", {"entries": entries}).json()["added"] == 2
    items = blocked("GET", "/v1/sets/blocked/entries").json()["items"]
    assert [(each["address"], each["comment"]) for each in items] == [("10.0.0.1", "two"), ("10.0.0.2", None)]


def test_entries_are_paged_in_order_of_addresses_and_filtered(blocked: ApiClient) -> None:
    entries: list[Any] = ["2001:db8::1", "10.0.0.0/8", "10.1.0.0/16", "9.9.9.9"]
    entries.append({"address": "10.1.2.3", "ttl": 60, "comment": "from web-1"})
    blocked("POST", "/v1/sets/blocked/entries", {"entries": entries})

    def listed(query: str) -> list[str]:
        items = blocked("GET", f"/v1/sets/blocked/entries{query}").json()["items"]
        return [each["address"] for each in items]

    assert listed("") == ["9.9.9.9", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "2001:db8::1"]
    assert listed("?page_size=2&page=2") == ["10.1.0.0/16", "10.1.2.3"]
    assert listed("?address=10.1.0.0/16") == ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3"]
    assert listed("?address=10.1.2.4") == ["10.0.0.0/8", "10.1.0.0/16"]
    assert listed("?expires=true") == listed("?comment=web") == ["10.1.2.3"]
    refused = blocked("GET", "/v1/sets/blocked/entries?address=10.1.2")
    assert (refused.status_code, pointers(refused)) == (422, ["?address"])


def test_entries_tell_what_they_counted(blocked: ApiClient, kernel: MemoryKernel) -> None:
    from firewall.hits import Hits

    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1"]})
    ((_, entry),) = kernel.entries.items()
    kernel.hits[entry.handle] = Hits(3, 180, 1000.0)
    stats = blocked("GET", "/v1/sets/blocked/entries").json()["items"][0]["stats"]
    assert stats == {"packets": 3, "bytes": 180, "last_hit": "1970-01-01T00:16:40Z"}
    assert blocked("GET", "/v1/rules/r").json()["stats"]["packets"] == 3
    blocked("DELETE", "/v1/sets/blocked/entries?address=10.0.0.1")
    assert blocked("GET", "/v1/rules/r").json()["stats"]["packets"] == 3


def test_a_set_in_use_is_not_deleted(blocked: ApiClient) -> None:
    blocked("POST", "/v1/rules", {"id": "off", "destinations": ["@blocked"], "enabled": False})
    blocked("POST", "/v1/rules", {"id": "web", "sources": ["@blocked"], "protocols": ["tcp"]})
    assert blocked("GET", "/v1/sets/blocked").json()["rules"] == ["r", "off", "web"]
    refused = blocked("DELETE", "/v1/sets/blocked")
    assert (refused.status_code, refused.json()["code"]) == (409, "set_in_use")
    assert all(name in refused.json()["detail"] for name in ("r", "off", "web"))
    for name in ("r", "off", "web"):
        blocked("DELETE", f"/v1/rules/{name}")
    assert blocked("DELETE", "/v1/sets/blocked").status_code == 204


def test_a_rule_that_names_an_unknown_set_is_refused_with_the_place(api: ApiClient) -> None:
    body = {"id": "r", "sources": ["10.0.0.0/8", "@none"]}
    refused = api("POST", "/v1/rules", body)
    assert (refused.status_code, refused.json()["code"], pointers(refused)) == (
        422,
        "unknown_set",
        ["/sources/1"],
    )
    assert "PUT /v1/sets/none" in refused.json()["hint"]
    refused = api("POST", "/v1/rules/batch", {"add": [{"id": "a"}, body]})
    assert pointers(refused) == ["/add/1/sources/1"]
    assert pointers(api("PUT", "/v1/ruleset", {"rules": [body]})) == ["/rules/0/sources/1"]
    assert api("GET", "/v1/rules").json()["total"] == 0
    assert api("POST", "/v1/rules", {"sources": ["@no such"]}).json()["code"] == "invalid_rule"


def test_rules_with_sets_go_out_and_come_in_by_name(blocked: ApiClient) -> None:
    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1"]})
    exported = blocked("GET", "/v1/ruleset").json()
    assert exported["rules"][0]["sources"] == ["@blocked"]
    assert blocked("PUT", "/v1/ruleset", exported).json()["unchanged"] == 1
    assert blocked("GET", "/v1/rules?address=10.0.0.1").json()["items"][0]["id"] == "r"
    assert blocked("GET", "/v1/rules?address=10.0.0.2").json()["total"] == 0


def test_bad_entries_are_all_named_and_nothing_is_done(blocked: ApiClient, kernel: MemoryKernel) -> None:
    entries: list[Any] = ["10.0.0.1", "10.0.0.1/8", {"address": "x"}, {"address": "10.0.0.2", "tll": 1}, 7]
    refused = blocked("POST", "/v1/sets/blocked/entries", {"entries": entries})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_entries")
    assert pointers(refused) == ["/entries/1", "/entries/2/address", "/entries/3/tll", "/entries/4"]
    refused = blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1"], "ttl": "soon"})
    assert pointers(refused) == ["/ttl"]
    assert blocked("DELETE", "/v1/sets/blocked/entries").status_code == 422
    assert blocked("POST", "/v1/sets/none/entries", {"entries": ["10.0.0.1"]}).status_code == 404
    refused = blocked("PUT", "/v1/sets/no@name")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_set")
    assert not kernel.entries


def test_a_managed_set_is_changed_by_its_owner_alone(blocked: ApiClient, enforcer: Enforcer) -> None:
    enforcer.give_set("blocked", "feed:drop")
    refused = blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "set_managed")
    assert "feed:drop" in refused.json()["detail"]
    assert blocked("GET", "/v1/sets/blocked").json()["source"] == "feed:drop"


def test_a_full_table_is_said_before_anything_is_written(blocked: ApiClient, kernel: MemoryKernel) -> None:
    many = [f"10.1.{number >> 8}.{number & 255}" for number in range(1001)]
    refused = blocked("POST", "/v1/sets/blocked/entries", {"entries": many})
    assert (refused.status_code, refused.json()["setting"]) == (507, "bpf.max_addresses")
    assert blocked("GET", "/v1/sets/blocked").json()["entries"] == 0 and not kernel.entries


def test_what_a_change_would_do_is_told_and_not_done(blocked: ApiClient, kernel: MemoryKernel) -> None:
    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1", "10.0.0.2"]})
    body = {"entries": ["10.0.0.2", "10.0.0.3", "10.0.0.4"], "comment": "x"}
    effect = blocked("PUT", "/v1/sets/blocked/entries?dry_run=true", body).json()
    assert [effect[name] for name in ("added", "removed", "changed", "unchanged")] == [2, 1, 1, 0]
    assert in_kernel(kernel).keys() == {"10.0.0.1", "10.0.0.2"}
    assert blocked("GET", "/v1/sets/blocked/entries?comment=x").json()["total"] == 0


def test_an_unconfirmed_change_of_a_set_is_taken_back(blocked: ApiClient, kernel: MemoryKernel) -> None:
    add = "/v1/sets/blocked/entries"
    blocked("POST", add, {"entries": [{"address": "10.0.0.1", "comment": "kept"}]})
    made = blocked("PUT", f"{add}?confirm_within=60", {"entries": ["10.0.0.2"]})
    assert "Confirm-Id" in made.headers and in_kernel(kernel).keys() == {"10.0.0.2"}
    refused = blocked("POST", add, {"entries": ["10.0.0.3"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "change_pending")
    assert blocked("POST", "/v1/rollback").status_code == 200
    assert in_kernel(kernel).keys() == {"10.0.0.1"}
    assert blocked("GET", add).json()["items"][0]["comment"] == "kept"


def test_making_and_deleting_a_set_is_taken_back(api: ApiClient) -> None:
    api("PUT", "/v1/sets/new?confirm_within=60")
    assert api("POST", "/v1/rollback").status_code == 200
    assert api("GET", "/v1/sets/new").status_code == 404
    assert api("POST", "/v1/rules", {"sources": ["@new"]}).status_code == 422
    api("PUT", "/v1/sets/old", {"description": "old"})
    api("POST", "/v1/sets/old/entries", {"entries": ["10.0.0.1"]})
    assert api("DELETE", "/v1/sets/old?confirm_within=60").status_code == 204
    assert api("GET", "/v1/sets/old").status_code == 404
    api("POST", "/v1/rollback")
    found = api("GET", "/v1/sets/old").json()
    assert (found["description"], found["entries"]) == ("old", 1)


def test_a_set_that_came_with_a_change_stays_empty_for_a_rule_that_came_later(
    api: ApiClient, kernel: MemoryKernel
) -> None:
    api("PUT", "/v1/sets/new?confirm_within=60")
    api("POST", "/v1/rules", {"id": "r", "sources": ["@new"]})
    api("POST", "/v1/rollback")
    assert api("GET", "/v1/sets/new").json()["rules"] == ["r"]


def test_a_rule_that_may_come_back_keeps_its_set(blocked: ApiClient) -> None:
    blocked("DELETE", "/v1/rules/r?confirm_within=60")
    assert blocked("DELETE", "/v1/sets/blocked").json()["code"] == "change_pending"


def test_status_and_metrics_tell_of_sets(blocked: ApiClient) -> None:
    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.1", "2001:db8::1"]})
    status = blocked("GET", "/v1/status").json()
    assert (status["sets"], status["set_entries"]) == (1, 2)
    assert 'ebpf_fw_set_entries{set="blocked"} 2.0' in blocked("GET", "/metrics").text


def test_rules_are_judged_by_what_is_in_their_sets(blocked: ApiClient) -> None:
    blocked("PUT", "/v1/interfaces/eth0", {})
    blocked("POST", "/v1/sets/blocked/entries", {"entries": ["10.0.0.0/24"]})
    rule = {"id": "web", "sources": ["@blocked"], "protocols": ["tcp"], "action": "allow", "priority": 5}
    blocked("POST", "/v1/rules", rule)
    judged = blocked("POST", "/v1/test", {"source": "10.0.0.9", "destination_port": 80}).json()
    assert (judged["rule"]["id"], [each["id"] for each in judged["also_matched"]]) == ("web", ["r"])
    assert judged["consistent"]
    assert blocked("POST", "/v1/test", {"source": "10.0.1.9"}).json()["rule"] is None
