"""GET /v1/audit: who changed what over HTTP, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import create_app
from api.attempts import BURST
from firewall.enforcer import Enforcer
from tests.api.client import ApiClient, pointers
from tests.api.test_access import from_afar, from_host, from_process, token


@pytest.fixture
def app(enforcer: Enforcer, openapi_document: dict[str, Any]) -> Iterator[FastAPI]:
    made = create_app(enforcer)
    made.openapi_schema = openapi_document
    yield made
    made.state.running.close()


def entries(app: FastAPI, **query: Any) -> list[dict[str, Any]]:
    answer = from_process(app, 0)("GET", "/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_a_change_is_told_with_all_that_was_said_of_it(app: FastAPI) -> None:
    text = token(app, "rules", "ci")
    headers = {"X-Reason": "Störung 7".encode(), "X-Request-Id": "trace-7"}
    rule = {"id": "a", "sources": "192.0.2.1", "priority": 7}
    assert from_afar(app)("POST", "/v1/rules", text, json=rule, headers=headers).status_code == 201
    newest = entries(app)[0]
    assert newest.pop("time").endswith("Z")
    assert newest == {
        "id": 2,
        "kind": "change",
        "actor": "token:ci",
        "source": "203.0.113.7:40000",
        "request_id": "trace-7",
        "call": "POST /v1/rules",
        "reason": "Störung 7",
        "action": "rule.add",
        "target": "a",
        "before": None,
        "after": [{"id": "a", "sources": ["192.0.2.1"], "priority": 7}],
        "summary": None,
    }


def test_both_ways_of_a_change_are_entered_alike(app: FastAPI) -> None:
    """The short way past the routing, and the long one."""
    local = from_host(app)
    for rule_id, query in (("short", ""), ("long", "?allow_lockout=true")):
        local("POST", f"/v1/rules{query}", json={"id": rule_id}, headers={"X-Reason": "why"})
        local("PUT", f"/v1/rules/{rule_id}{query}", json={"priority": 1}, headers={"X-Reason": "why"})
        local("DELETE", f"/v1/rules/{rule_id}{query}", headers={"X-Reason": "why"})
    found = entries(app)
    unlike = ("id", "time", "request_id", "target", "call", "before", "after")
    told = [{name: value for name, value in each.items() if name not in unlike} for each in found]
    assert told[:3] == told[3:] and {each["reason"] for each in found} == {"why"}
    assert [each["action"] for each in found[:3]] == ["rule.delete", "rule.change", "rule.add"]


@pytest.mark.parametrize(
    ("method", "path", "body", "action"),
    [
        ("POST", "/v1/rules", {"id": "b"}, "rule.add"),
        ("PUT", "/v1/rules/a", {"priority": 3}, "rule.change"),
        ("PATCH", "/v1/rules/a", {"priority": 3}, "rule.change"),
        ("POST", "/v1/rules/a/promote", None, "rule.change"),
        ("POST", "/v1/rules/a/reset-counters", None, "rule.reset-counters"),
        ("DELETE", "/v1/rules/a", None, "rule.delete"),
        ("POST", "/v1/rules/batch", {"add": [{"id": "b"}], "delete": ["a"]}, "rule.batch"),
        ("PUT", "/v1/ruleset", {"rules": [{"id": "b"}]}, "ruleset.replace"),
        ("PUT", "/v1/interfaces/eth0", {}, "interface.attach"),
        ("POST", "/v1/panic", {"on": True}, "panic.on"),
        ("POST", "/v1/tokens", {"scope": "read"}, "token.create"),
        ("PUT", "/v1/sets/new", {}, "set.create"),
        ("PUT", "/v1/sets/there", {"description": "other"}, "set.change"),
        ("DELETE", "/v1/sets/there", None, "set.delete"),
        ("POST", "/v1/sets/there/entries", {"entries": ["192.0.2.2"]}, "set.add"),
        ("PUT", "/v1/sets/there/entries", {"entries": ["192.0.2.2"]}, "set.replace"),
        ("DELETE", "/v1/sets/there/entries?address=192.0.2.1", None, "set.remove"),
    ],
)
def test_every_change_of_the_api_is_entered_for_who_made_it(
    app: FastAPI, method: str, path: str, body: Any, action: str
) -> None:
    root = from_process(app, 0)
    root("POST", "/v1/rules", json={"id": "a", "mode": "observe"})
    root("PUT", "/v1/sets/there", json={})
    root("POST", "/v1/sets/there/entries", json={"entries": ["192.0.2.1"]})
    answer = root(method, path, json=body)
    assert answer.status_code in (200, 201, 204), answer.text
    newest = entries(app)[0]
    assert (newest["action"], newest["actor"], newest["source"]) == (action, "uid:0", "unix:pid=4711")
    assert (
        newest["request_id"] == answer.headers["x-request-id"]
        and newest["call"] == f"{method} {path.partition('?')[0]}"
    )


def test_few_entries_of_a_set_are_told_and_many_are_counted(app: FastAPI) -> None:
    local = from_host(app)
    local("PUT", "/v1/sets/s", json={})
    local("POST", "/v1/sets/s/entries", json={"entries": ["192.0.2.1"]})
    local("PUT", "/v1/sets/s/entries", json={"entries": ["192.0.2.0/28", "2001:db8::1"]})
    many = [f"10.0.0.{number}" for number in range(100)]
    local("POST", "/v1/sets/s/entries", json={"entries": many})
    many_added, replaced = entries(app)[:2]
    assert (replaced["before"], replaced["after"]) == (["192.0.2.1"], ["192.0.2.0/28", "2001:db8::1"])
    assert (many_added["before"], many_added["after"]) == (None, None)
    assert (many_added["summary"]["added"], many_added["summary"]["source"]) == (100, "api")


def test_an_imported_list_is_one_entry(app: FastAPI) -> None:
    text = "\n".join(f"10.0.0.{n}" for n in range(200))
    headers = {"Content-Type": "text/plain"}
    assert from_host(app)("POST", "/v1/rules/import", content=text, headers=headers).status_code == 200
    (entry,) = entries(app)
    assert entry["action"] == "rule.import" and entry["summary"]["added"] == 200
    assert entry["summary"]["digest"].startswith("sha256:")


def test_a_token_stands_nowhere_in_the_audit(app: FastAPI) -> None:
    text = token(app, "admin")
    from_afar(app)("DELETE", "/v1/tokens/admin", text)
    answer = from_process(app, 0)("GET", "/v1/audit").text
    assert text not in answer and text.rpartition("_")[2] not in answer and "token.revoke" in answer


def test_denied_accesses_are_entered_by_source_with_their_number(app: FastAPI, enforcer: Enforcer) -> None:
    text = token(app, "read", "ci")
    for _ in range(BURST + 5):
        from_afar(app)("GET", "/v1/rules", "wrong")
    from_afar(app)("POST", "/v1/rules", text, json={})
    from_process(app, 65534)("GET", "/v1/rules")
    from_afar(app)("GET", "/v1/rules")
    from_afar(app)("GET", "/healthz")
    enforcer.enter_denied(app.state.access.attempts.drain())
    found = {each["target"]: each for each in entries(app, kind="access")}
    wrong = found["invalid_token"]
    assert wrong["actor"] == "anonymous" and wrong["source"].startswith("203.0.113.7:")
    assert wrong["summary"] == {"times": BURST + 5} and wrong["action"] == "access.denied"
    nobody = found["authentication_required"]
    assert nobody["actor"] == "anonymous" and nobody["summary"] == {"times": 1}
    assert nobody["call"] == "GET /v1/rules"
    assert found["insufficient_scope"]["actor"] == "token:ci"
    assert found["peer_not_allowed"]["actor"] == "uid:65534"


def test_pages_go_on_where_the_last_one_ended_whatever_comes_in_between(api: ApiClient) -> None:
    for number in range(5):
        api("POST", "/v1/rules", {"id": f"r{number}"})
    seen, before = [], None
    while True:
        query = f"?page_size=2{'' if before is None else f'&before={before}'}"
        page = api("GET", f"/v1/audit{query}").json()
        seen += [each["target"] for each in page["items"]]
        api("POST", "/v1/rules", {"id": f"later{len(seen)}"})
        before = page["next_before"]
        if before is None:
            break
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


def test_filters_choose_and_what_is_wrong_is_pointed_at(api: ApiClient) -> None:
    api("POST", "/v1/rules", {"id": "a"})
    api("DELETE", "/v1/rules/a")
    for query, count in (
        ("action=rule", 2), ("action=rule.add", 1), ("target=a", 2), ("actor=anonymous", 2), ("actor=service", 0),
        ("kind=access", 0), ("since=2001-01-01T00:00:00Z", 2), ("until=2001-01-01T00:00:00Z", 0),
        ("since=2999-01-01T00:00:00Z", 0),
    ):  # fmt: skip
        assert len(api("GET", f"/v1/audit?{query}").json()["items"]) == count, query
    for query, pointer in (
        ("since=yesterday", "?since"), ("page_size=0", "?page_size"), ("page_size=1001", "?page_size"),
        ("before=0", "?before"), ("kind=x", "?kind"), ("who=x", "?who"),
    ):  # fmt: skip
        refused = api("GET", f"/v1/audit?{query}")
        assert refused.status_code == 422 and pointers(refused) == [pointer], query


def test_nothing_of_the_api_changes_the_audit(api: ApiClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert api(method, "/v1/audit").status_code == 405
        assert api(method, "/v1/audit/1").status_code in (404, 405)
