"""/v1/rules: adding, reading, listing, replacing, patching, deleting, and many in one change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api import rules
from api.schemas import RuleFields
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel

HOST = {"id": "host", "sources": ["203.0.113.7"]}
EVERYTHING: dict[str, Any] = {
    "id": "all-1",
    "description": "every field",
    "enabled": False,
    "mode": "observe",
    "action": "allow",
    "priority": 7,
    "direction": "both",
    "interfaces": ["eth0", "wg*"],
    "family": "ipv4",
    "sources": ["203.0.113.0/24"],
    "destinations": ["198.51.100.1"],
    "protocols": ["tcp"],
    "source_ports": ["1024-65535"],
    "destination_ports": ["22", "8000-8100"],
    "icmp_types": [],
    "tcp_flags": {"set": ["syn"], "unset": ["ack"]},
    "labels": {"team": "web"},
    "expires_at": "2090-01-01T00:00:00Z",
}
READ_ONLY = {"created_at", "updated_at", "stats", "warnings"}


def writable(rule: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name not in READ_ONLY}


def seconds_until(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


# -- one rule


def test_a_new_rule_is_created_where_location_says_and_is_in_the_kernel(
    api: ApiClient, kernel: MemoryKernel
) -> None:
    added = api("POST", "/v1/rules", HOST)
    assert added.status_code == 201
    assert added.headers["location"] == "/v1/rules/host"
    assert api("GET", added.headers["location"]).json() == added.json()
    assert added.json()["stats"] == {"packets": 0, "bytes": 0, "last_hit": None}
    assert len(kernel.entries) == 1


def test_a_rule_without_id_gets_one(api: ApiClient) -> None:
    first, second = (api("POST", "/v1/rules", {"sources": "203.0.113.7"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]
    assert first.headers["location"] == f"/v1/rules/{first.json()['id']}"


def test_a_null_id_is_an_absent_one(api: ApiClient) -> None:
    assert api("POST", "/v1/rules", {"id": None, "sources": "203.0.113.7"}).status_code == 201


def test_every_field_comes_back_as_it_was_written(api: ApiClient) -> None:
    assert writable(api("POST", "/v1/rules", EVERYTHING).json()) == EVERYTHING


def test_an_empty_rule_has_the_defaults_that_the_schema_documents(api: ApiClient) -> None:
    rule = writable(api("POST", "/v1/rules", {}).json())
    documented = RuleFields.model_validate({}).model_dump(exclude={"id", "ttl", *READ_ONLY})
    assert {name: value for name, value in rule.items() if name != "id"} == documented


def test_one_element_may_stand_for_a_list(api: ApiClient) -> None:
    body = {"sources": "2001:db8::/32", "protocols": 6, "destination_ports": 22, "interfaces": "eth0"}
    rule = api("POST", "/v1/rules", body).json()
    assert (rule["sources"], rule["protocols"]) == (["2001:db8::/32"], ["tcp"])
    assert (rule["destination_ports"], rule["interfaces"]) == (["22"], ["eth0"])


def test_the_same_rule_again_changes_nothing(api: ApiClient) -> None:
    first = api("POST", "/v1/rules", HOST)
    again = api("POST", "/v1/rules", {**HOST, "action": "drop", "protocols": []})
    assert again.status_code == 200
    assert "location" not in again.headers
    assert again.json() == first.json()


def test_the_same_id_with_another_body_is_refused_and_changes_nothing(api: ApiClient) -> None:
    before = api("POST", "/v1/rules", HOST).json()
    refused = api("POST", "/v1/rules", {**HOST, "sources": ["203.0.113.8"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "rule_exists")
    assert refused.json()["hint"]
    assert api("GET", "/v1/rules/host").json() == before


def test_what_was_read_can_be_sent_back(api: ApiClient) -> None:
    rule = api("POST", "/v1/rules", EVERYTHING).json()
    assert api("POST", "/v1/rules", rule).status_code == 200
    assert writable(api("PUT", "/v1/rules/all-1", rule).json()) == writable(rule)
    assert writable(api("PATCH", "/v1/rules/all-1", rule).json()) == writable(rule)


@pytest.mark.parametrize("ttl", [3600, "3600", "1h", "59m60s"])
def test_a_ttl_becomes_the_moment_of_expiry(api: ApiClient, ttl: int | str) -> None:
    rule = api("POST", "/v1/rules", {**HOST, "ttl": ttl}).json()
    assert "ttl" not in rule
    assert 3590 < seconds_until(rule["expires_at"]) <= 3600


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"id": "no spaces"}, "/id"),
        ({"id": 7}, "/id"),
        ({"colour": "red"}, "/colour"),
        ({"priority": 65536}, "/priority"),
        ({"priority": -1}, "/priority"),
        ({"priority": "7"}, "/priority"),
        ({"priority": 1.0}, "/priority"),
        ({"priority": True}, "/priority"),
        ({"action": "reject"}, "/action"),
        ({"direction": "in"}, "/direction"),
        ({"family": 4}, "/family"),
        ({"enabled": "yes"}, "/enabled"),
        ({"description": 1}, "/description"),
        ({"sources": ["::1", "203.0.113.7/24"]}, "/sources/1"),
        ({"destinations": "example.org"}, "/destinations/0"),
        ({"sources": {"a": "b"}}, "/sources"),
        ({"sources": [None]}, "/sources/0"),
        ({"protocols": ["tcp", "quic"]}, "/protocols/1"),
        ({"destination_ports": ["80", "90-80"]}, "/destination_ports/1"),
        ({"protocols": ["gre"], "source_ports": [1]}, "/source_ports"),
        ({"icmp_types": ["256"]}, "/icmp_types/0"),
        ({"tcp_flags": {"set": ["syn"], "unset": ["syn"]}}, "/tcp_flags"),
        ({"tcp_flags": {"sets": []}}, "/tcp_flags"),
        ({"interfaces": ["eth9"]}, "/interfaces/0"),
        ({"interfaces": ["a b"]}, "/interfaces/0"),
        ({"labels": {"a": 1}}, "/labels"),
        ({"ttl": 0}, "/ttl"),
        ({"ttl": "soon"}, "/ttl"),
        ({"expires_at": "2090-01-01T00:00:00"}, "/expires_at"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_is_pointed_at_and_changes_nothing(
    api: ApiClient, body: dict[str, Any], pointer: str
) -> None:
    refused = api("POST", "/v1/rules", body)
    assert refused.status_code == 422, refused.text
    assert pointers(refused) == [pointer]
    assert refused.json()["hint"]
    assert api("GET", "/v1/rules").json()["total"] == 0


def test_all_faults_are_told_at_once(api: ApiClient) -> None:
    body = {"sources": ["1.2.3", "203.0.113.7/24"], "priority": 70000, "nosuch": 1}
    assert set(pointers(api("POST", "/v1/rules", body))) == {
        "/nosuch",
        "/priority",
        "/sources/0",
        "/sources/1",
    }


def test_host_bits_are_answered_with_the_network_that_may_have_been_meant(api: ApiClient) -> None:
    refused = api("POST", "/v1/rules", {"sources": ["203.0.113.7/24"]}).json()
    assert "203.0.113.0/24" in refused["errors"][0]["detail"]


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PUT", {}), ("PATCH", {}), ("DELETE", None)])
def test_a_rule_that_is_not_there_is_a_404(api: ApiClient, method: str, body: Any) -> None:
    missing = api(method, "/v1/rules/nobody", body)
    assert (missing.status_code, missing.json()["code"]) == (404, "rule_not_found")


def test_a_deleted_rule_is_gone_from_the_kernel_too(api: ApiClient, kernel: MemoryKernel) -> None:
    api("POST", "/v1/rules", HOST)
    assert api("DELETE", "/v1/rules/host").status_code == 204
    assert api("GET", "/v1/rules/host").status_code == 404
    assert kernel.entries == {}


# -- PUT and PATCH


def test_put_replaces_every_field(api: ApiClient) -> None:
    created_at = api("POST", "/v1/rules", EVERYTHING).json()["created_at"]
    replaced = api("PUT", "/v1/rules/all-1", {"sources": ["::1"]})
    assert replaced.status_code == 200
    rule = replaced.json()
    assert (rule["sources"], rule["priority"], rule["expires_at"]) == (["::1"], 1000, None)
    assert rule["created_at"] == created_at


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_id_cannot_change(api: ApiClient, method: str) -> None:
    api("POST", "/v1/rules", HOST)
    assert api(method, "/v1/rules/host", {"id": "host", "sources": ["::1"]}).status_code == 200
    refused = api(method, "/v1/rules/host", {"id": "other"})
    assert (refused.status_code, pointers(refused)) == (422, ["/id"])


def test_a_patch_changes_what_it_names(api: ApiClient) -> None:
    before = api("POST", "/v1/rules", EVERYTHING).json()
    after = api("PATCH", "/v1/rules/all-1", {"priority": 8, "sources": "198.51.100.0/24"}).json()
    assert writable(after) == {**writable(before), "priority": 8, "sources": ["198.51.100.0/24"]}


def test_null_in_a_patch_resets_to_the_default(api: ApiClient) -> None:
    api("POST", "/v1/rules", EVERYTHING)
    patch = {name: None for name in EVERYTHING if name != "id"}
    after = writable(api("PATCH", "/v1/rules/all-1", patch).json())
    default = writable(api("POST", "/v1/rules", {"id": "default"}).json())
    assert {**after, "id": ""} == {**default, "id": ""}


def test_a_patch_merges_objects(api: ApiClient) -> None:
    api("POST", "/v1/rules", {**EVERYTHING, "labels": {"a": "1", "b": "2"}})
    patch = {"labels": {"a": None, "c": "3"}, "tcp_flags": {"unset": ["rst"]}}
    after = api("PATCH", "/v1/rules/all-1", patch).json()
    assert after["labels"] == {"b": "2", "c": "3"}
    assert after["tcp_flags"] == {"set": ["syn"], "unset": ["rst"]}


def test_a_ttl_starts_again_only_if_the_patch_names_it(api: ApiClient) -> None:
    expires_at = api("POST", "/v1/rules", {**HOST, "ttl": "1h"}).json()["expires_at"]
    assert api("PATCH", "/v1/rules/host", {"priority": 1}).json()["expires_at"] == expires_at
    assert seconds_until(api("PATCH", "/v1/rules/host", {"ttl": "2h"}).json()["expires_at"]) > 7000
    assert api("PATCH", "/v1/rules/host", {"ttl": None}).json()["expires_at"] is None


def test_a_patch_of_the_moment_of_expiry_takes_the_place_of_the_ttl(api: ApiClient) -> None:
    api("POST", "/v1/rules", {**HOST, "ttl": "1h"})
    moment = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds").replace("+00:00", "Z")
    assert api("PATCH", "/v1/rules/host", {"expires_at": moment}).json()["expires_at"] == moment


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [({"nosuch": None}, "/nosuch"), ({"nosuch": 1}, "/nosuch"), ({"priority": "x"}, "/priority")],
)
def test_a_wrong_patch_changes_nothing(api: ApiClient, patch: dict[str, Any], pointer: str) -> None:
    before = api("POST", "/v1/rules", HOST).json()
    refused = api("PATCH", "/v1/rules/host", patch)
    assert (refused.status_code, pointers(refused)) == (422, [pointer])
    assert api("GET", "/v1/rules/host").json() == before


def test_a_merge_patch_may_say_so(api: ApiClient) -> None:
    api("POST", "/v1/rules", HOST)
    headers = {"Content-Type": "application/merge-patch+json"}
    assert api("PATCH", "/v1/rules/host", content=b'{"priority": 3}', headers=headers).json()["priority"] == 3


# -- lists


def test_a_listing_is_paged_in_the_order_of_creation(api: ApiClient) -> None:
    for number in range(5):
        api("POST", "/v1/rules", {"id": f"r{number}"})
    seen: list[str] = []
    for page in (1, 2, 3):
        answer = api("GET", f"/v1/rules?page={page}&page_size=2").json()
        assert {name: answer[name] for name in ("total", "page", "page_size", "total_pages")} == {
            "total": 5,
            "page": page,
            "page_size": 2,
            "total_pages": 3,
        }
        seen += [rule["id"] for rule in answer["items"]]
    assert seen == ["r0", "r1", "r2", "r3", "r4"]
    assert api("GET", "/v1/rules?page=4&page_size=2").json()["items"] == []


def test_an_empty_listing_has_no_pages(api: ApiClient) -> None:
    expected = {"items": [], "total": 0, "page": 1, "page_size": 100, "total_pages": 0}
    assert api("GET", "/v1/rules").json() == expected


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", ["net", "host6", "out", "off"]),
        ("direction=egress", ["out"]),
        ("action=allow", ["out"]),
        ("enabled=false", ["off"]),
        ("enabled=true", ["net", "host6", "out"]),
        ("label=team", ["net", "off"]),
        ("label=team%3Dweb", ["net"]),
        ("label=team%3D", []),
        ("address=203.0.113.9", ["net", "off"]),
        ("address=203.0.113.0/25", ["net"]),
        ("address=203.0.112.0/23", []),
        ("address=2001:db8::1", ["host6"]),
        ("address=198.51.100.1", ["out"]),
        ("address=203.0.113.9&enabled=true", ["net"]),
    ],
)
def test_filters_let_through_the_rules_that_fit_all_of_them(
    api: ApiClient, query: str, ids: list[str]
) -> None:
    for rule in (
        {"id": "net", "sources": ["203.0.113.0/24"], "labels": {"team": "web"}},
        {"id": "host6", "sources": ["2001:db8::1"], "protocols": ["tcp"]},
        {"id": "out", "destinations": ["198.51.100.0/24"], "direction": "egress", "action": "allow"},
        {"id": "off", "sources": ["203.0.113.9"], "enabled": False, "labels": {"team": "db"}},
    ):
        assert api("POST", "/v1/rules", rule).status_code == 201
    answer = api("GET", f"/v1/rules?{query}").json()
    assert ([rule["id"] for rule in answer["items"]], answer["total"]) == (ids, len(ids))


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("page=0", "?page"),
        ("page=x", "?page"),
        ("page_size=1001", "?page_size"),
        ("page_size=0", "?page_size"),
        ("direction=up", "?direction"),
        ("enabled=perhaps", "?enabled"),
        ("address=203.0.113.7/24", "?address"),
        ("address=host", "?address"),
        ("colour=red", "?colour"),
    ],
)
def test_a_wrong_parameter_is_pointed_at(api: ApiClient, query: str, pointer: str) -> None:
    refused = api("GET", f"/v1/rules?{query}")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query")
    assert pointers(refused) == [pointer]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/rules/host"), ("DELETE", "/v1/rules/host"), ("GET", "/v1/ruleset"), ("GET", "/v1/status")],
)
def test_no_call_ignores_a_parameter(api: ApiClient, method: str, path: str) -> None:
    api("POST", "/v1/rules", HOST)
    refused = api(method, f"{path}?force=1")
    assert (refused.status_code, pointers(refused)) == (422, ["?force"])
    assert api("GET", "/v1/rules/host").status_code == 200


# -- many rules in one change


def test_a_batch_adds_and_deletes_and_tells_the_ids_in_order(api: ApiClient) -> None:
    api("POST", "/v1/rules", HOST)
    api("POST", "/v1/rules", {"id": "same"})
    add = [{"id": "b"}, {"sources": ["::1"]}, {"id": "a"}, {"id": "same"}]
    answer = api("POST", "/v1/rules/batch", {"add": add, "delete": ["host"]})
    assert answer.status_code == 200
    made = answer.json()
    assert (made["added"], made["deleted"], made["unchanged"]) == (3, 1, 1)
    assert (made["ids"][0], made["ids"][2:]) == ("b", ["a", "same"])
    assert api("GET", f"/v1/rules/{made['ids'][1]}").json()["sources"] == ["::1"]
    assert api("GET", "/v1/rules").json()["total"] == 4


def test_an_empty_batch_is_no_change(api: ApiClient) -> None:
    expected = {"added": 0, "deleted": 0, "unchanged": 0, "ids": [], "warnings": []}
    assert api("POST", "/v1/rules/batch", {}).json() == expected


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"add": [{}, {"sources": "x"}, {"priority": "y"}]}, 422, ["/add/1/sources/0", "/add/2/priority"]),
        ({"add": [{}, 7]}, 422, ["/add/1"]),
        ({"add": [{"id": "a"}, {"id": "a"}]}, 422, ["/add/1/id"]),
        ({"add": [{}, {"interfaces": ["eth9"]}]}, 422, ["/add/1/interfaces/0"]),
        ({"add": [{}, {**HOST, "priority": 1}]}, 409, ["/add/1/id"]),
        ({"add": [{}], "delete": ["host", "nobody"]}, 404, ["/delete/1"]),
        ({"add": {}}, 422, ["/add"]),
        ({"delete": [1]}, 422, ["/delete/0"]),
        ({"remove": ["host"]}, 422, ["/remove"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_batch_with_a_fault_changes_nothing(
    api: ApiClient, body: dict[str, Any], status: int, expected: list[str]
) -> None:
    before = api("POST", "/v1/rules", HOST).json()
    refused = api("POST", "/v1/rules/batch", body)
    assert (refused.status_code, pointers(refused)) == (status, expected)
    assert api("GET", "/v1/rules/host").json() == before
    assert api("GET", "/v1/rules").json()["total"] == 1


def test_a_batch_with_many_faults_lists_the_first_hundred(api: ApiClient) -> None:
    refused = api("POST", "/v1/rules/batch", {"add": [{"sources": "x"}] * 150})
    assert len(pointers(refused)) == 100
    assert "149 more" in refused.json()["detail"]


def test_changes_at_the_same_time_are_all_made(api: ApiClient) -> None:
    requests = [("POST", "/v1/rules", {"id": f"r{number}"}) for number in range(30)]
    assert {answer.status_code for answer in api.together(*requests, *requests)} == {200, 201}
    assert api("GET", "/v1/rules").json()["total"] == 30


def test_a_batch_of_too_many_rules_is_refused_whole(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST_RULES", 3)
    assert api("POST", "/v1/rules", {"id": "a"}).status_code == 201
    adds = [{"id": f"r{n}", "sources": f"192.0.2.{n}"} for n in range(3)]
    response = api("POST", "/v1/rules/batch", {"add": adds, "delete": ["a"]})
    assert response.status_code == 413
    assert response.json()["code"] == "too_many_rules"
    assert api("GET", "/v1/rules").json()["total"] == 1
    assert api("POST", "/v1/rules/batch", {"add": adds}).status_code == 200
