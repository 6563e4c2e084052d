"""confirm_within, allow_lockout and dry_run over HTTP, on every call that changes something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from firewall.datapath import Connection
from firewall.enforcer import Enforcer
from tests.api.client import ApiClient
from tests.memory_kernel import MemoryKernel

RULE = {"id": "r", "sources": "192.0.2.1"}
# Each on a rule set that has `old` and `eth1` attached.
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "add": ("POST", "/v1/rules", {"body": RULE}),
    "replace": ("PUT", "/v1/rules/old", {"body": {"sources": "192.0.2.9"}}),
    "patch": ("PATCH", "/v1/rules/old", {"body": {"priority": 7}}),
    "delete": ("DELETE", "/v1/rules/old", {}),
    "batch": ("POST", "/v1/rules/batch", {"body": {"add": [RULE], "delete": ["old"]}}),
    "import": (
        "POST",
        "/v1/rules/import",
        {"content": b"192.0.2.5\n", "headers": {"Content-Type": "text/plain"}},
    ),
    "replace all": ("PUT", "/v1/ruleset", {"body": {"rules": [RULE]}}),
    "attach": ("PUT", "/v1/interfaces/eth0", {"body": {"mode": "generic"}}),
    "detach": ("DELETE", "/v1/interfaces/eth1", {}),
}
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def call(api: ApiClient) -> Callable[..., httpx.Response]:
    assert api("POST", "/v1/rules", {"id": "old", "sources": "192.0.2.8"}).status_code == 201
    assert api("PUT", "/v1/interfaces/eth1").status_code == 200

    def send(name: str, query: str = "", **headers: str) -> httpx.Response:
        method, path, options = CALLS[name]
        options = dict(options)
        merged = {**options.pop("headers", {}), **headers}
        return api(method, path + query, options.pop("body", None), headers=merged, **options)

    return send


def everything(api: ApiClient) -> tuple[Any, ...]:
    rules, interfaces = api("GET", "/v1/rules").json(), api("GET", "/v1/interfaces").json()
    return rules, interfaces


@every_call
def test_a_change_is_taken_back_at_once_when_that_is_asked(
    api: ApiClient, call: Callable[..., Any], name: str
) -> None:
    before = everything(api)
    response = call(name, "?confirm_within=60")
    assert response.is_success and everything(api) != before
    pending = api("GET", "/v1/changes").json()["pending"]
    assert [each["state"] for each in pending] == ["pending"]
    assert response.headers["Confirm-Id"] == str(pending[0]["id"])
    assert response.headers["Confirm-By"] == pending[0]["deadline"]
    assert 50 < pending[0]["seconds_left"] <= 60
    assert api("GET", "/v1/status").json()["changes_waiting"] == 1
    assert api("POST", "/v1/rollback").json()["rolled_back"][0]["id"] == pending[0]["id"]
    assert everything(api) == before
    assert api("POST", "/v1/confirm").status_code == 404


@every_call
def test_a_change_that_is_confirmed_stays(api: ApiClient, call: Callable[..., Any], name: str) -> None:
    change = call(name, "?confirm_within=60").headers["Confirm-Id"]
    during = everything(api)
    assert api("POST", f"/v1/confirm?id={change}").status_code == 200
    assert everything(api) == during
    assert api("POST", f"/v1/rollback?id={change}").json()["code"] == "change_not_found"


@every_call
@pytest.mark.parametrize("how", ["query", "header"])
def test_a_change_that_is_only_tried_changes_nothing(
    api: ApiClient, call: Callable[..., Any], name: str, how: str
) -> None:
    before, etag = everything(api), api("GET", "/v1/ruleset").headers["ETag"]
    if how == "query":
        response = call(name, "?dry_run=true&confirm_within=60")
    else:
        response = call(name, Prefer="respond-async, dry-run")
    assert response.status_code == 200 and response.json()["dry_run"] is True
    assert response.headers["Preference-Applied"] == "dry-run" and "Confirm-Id" not in response.headers
    assert everything(api) == before and api("GET", "/v1/ruleset").headers["ETag"] == etag
    assert api("GET", "/v1/changes").json() == {"pending": [], "recent": []}


def test_the_effect_counts(call: Callable[..., Any]) -> None:
    effect = call("replace all", "?dry_run=1").json()
    assert (effect["added"], effect["removed"], effect["changed"]) == (1, 1, 0)
    assert call("patch", "?dry_run=1").json()["changed"] == 1
    assert call("import", "?dry_run=1").json()["added"] == 1


@every_call
@pytest.mark.parametrize(
    "query",
    ["confirm_within=0", "confirm_within=86401", "confirm_within=soon", "dry_run=maybe", "confirm=60"],
)
def test_wrong_parameters_are_named(call: Callable[..., Any], api: ApiClient, name: str, query: str) -> None:
    before = everything(api)
    response = call(name, f"?{query}")
    assert response.status_code == 422 and response.json()["code"] == "invalid_query"
    assert response.json()["errors"][0]["pointer"] == "?" + query.partition("=")[0]
    assert everything(api) == before


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("attach", "detach", "import")])
def test_what_is_wrong_is_refused_in_a_dry_run_as_well(api: ApiClient, name: str) -> None:
    method, path, _ = CALLS[name]
    body = {"add": [{"sources": "x"}]} if name == "batch" else {"sources": "x"}
    wrong = {"rules": [{"sources": "x"}]} if name == "replace all" else body
    if name != "add":
        assert api("POST", "/v1/rules", {"id": "old", "sources": "192.0.2.8"}).status_code == 201
    if name == "delete":
        assert api(method, "/v1/rules/none?dry_run=true").status_code == 404
    else:
        assert api(method, path + "?dry_run=true", wrong).status_code == 422


def test_a_table_without_room_is_told_in_a_dry_run(api: ApiClient) -> None:
    text = "\n".join(f"10.0.{n >> 8}.{n & 255}" for n in range(1001))
    options = {"content": text.encode(), "headers": {"Content-Type": "text/plain"}}
    assert api("POST", "/v1/rules/import?dry_run=true", **options).status_code == 507


def test_another_change_of_what_waits_is_refused(api: ApiClient, call: Callable[..., Any]) -> None:
    call("replace", "?confirm_within=60")
    for name in ("patch", "delete", "batch", "replace all"):
        response = call(name)
        assert response.status_code == 409 and response.json()["code"] == "change_pending"
    assert call("add").status_code == 201


def test_a_lockout_names_rule_and_connection(api: ApiClient, kernel: MemoryKernel) -> None:
    kernel.live = [Connection(4, 0x0A000001, 22, 0xCB007109, 51000, is_ssh=True)]
    assert api("PUT", "/v1/interfaces/eth0").status_code == 200
    response = api("POST", "/v1/rules", {"id": "cut", "sources": "203.0.113.9"})
    problem = response.json()
    assert response.status_code == 409 and problem["code"] == "lockout"
    assert "'cut'" in problem["detail"] and "203.0.113.9:51000" in problem["detail"]
    assert problem["lockouts"] == [
        {"rule": "cut", "connection": "the SSH session 203.0.113.9:51000 to 10.0.0.1:22", "purpose": "ssh",
         "interface": "eth0", "hook": "ingress"}
    ]  # fmt: skip
    effect = api("POST", "/v1/rules?dry_run=true", {"id": "cut", "sources": "203.0.113.9"}).json()
    assert effect["lockouts"] == problem["lockouts"]
    assert (
        api("POST", "/v1/rules?allow_lockout=true", {"id": "cut", "sources": "203.0.113.9"}).status_code
        == 201
    )


def test_the_client_is_judged_where_its_interface_is_protected(api: ApiClient, enforcer: Enforcer) -> None:
    """The test's client is 127.0.0.1:123, the service 127.0.0.1:9378."""
    assert api("POST", "/v1/rules", {"id": "a", "sources": "127.0.0.0/8"}).status_code == 201
    assert api("DELETE", "/v1/rules/a").status_code == 204
    assert api("PUT", "/v1/interfaces/lo").status_code == 200
    for path in ("/v1/rules", "/v1/rules?confirm_within=60"):  # the short way and the long one
        response = api("POST", path, {"id": "a", "sources": "127.0.0.0/8"})
        assert response.status_code == 409 and "the API client 127.0.0.1:" in response.json()["detail"]
