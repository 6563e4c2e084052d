"""Who may do what: credentials of each kind, scopes at every route, and what a wrong one is told."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from api import attempts
from api.app import create_app
from api.attempts import BURST, MOST_NOTED, MOST_SOURCES, MOST_TOLD, OTHERS, Attempts, network_of
from api.peer import PEER, Peer, Process, certificate_names
from api.permissions import ADMIN, OPEN, READ, RULES, SCOPES, TABLE, is_listed, needed, suffices
from firewall.audit_entry import Origin
from firewall.enforcer import Enforcer
from firewall.rule import parse_time
from firewall.settings import Api
from tests.api.client import PROBLEM, ApiClient

UNIX = ("/run/ebpf-fw/api.sock", None)
LOOPBACK = ("127.0.0.1", 9378)
EXAMPLE = {"rule_id": "a", "name": "eth9"}


class From:
    """The application as it is reached from somewhere: the scope's ends and peer are put there."""

    def __init__(self, app: FastAPI, client: Any, server: Any, peer: Peer | None = None) -> None:
        self.app = app
        self._ends = {"client": client, "server": server, PEER: peer or Peer()}
        self.transport = httpx.ASGITransport(self._call, raise_app_exceptions=False)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, **self._ends}, receive, send)

    def __call__(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        if token is not None:
            options["headers"] = {"Authorization": f"Bearer {token}", **options.get("headers", {})}

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://127.0.0.1:9378") as http:
                return await http.request(method, path, **options)

        response = asyncio.run(send())
        assert "access-control-allow-origin" not in response.headers
        assert re.fullmatch(r"[\w.:-]+", response.headers["x-request-id"])
        if response.is_error:
            assert response.headers["content-type"] == PROBLEM
        return response


def from_host(app: FastAPI) -> From:
    return From(app, ("127.0.0.1", 40000), LOOPBACK)


def from_afar(app: FastAPI, address: str = "203.0.113.7", names: tuple[str, ...] = ()) -> From:
    return From(app, (address, 40000), ("192.0.2.1", 9443), Peer(names=names))


def from_process(app: FastAPI, uid: int, *groups: int) -> From:
    return From(app, None, UNIX, Peer(Process(4711, uid, frozenset(groups))))


@pytest.fixture
def guarded() -> Api:
    """A test module's settings of the API."""
    return Api()


@pytest.fixture
def app(enforcer: Enforcer, guarded: Api, openapi_document: dict[str, Any]) -> Iterator[FastAPI]:
    made = create_app(enforcer, settings=guarded)
    made.openapi_schema = openapi_document
    yield made
    made.state.running.close()


def told(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def token(app: FastAPI, scope: str, name: str | None = None, **more: Any) -> str:
    body = {"scope": scope, "name": name or scope, **more}
    made = from_process(app, 0)("POST", "/v1/tokens", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["token"])


# -- who needs credentials


def test_a_client_of_this_host_needs_none_until_there_was_a_token(app: FastAPI) -> None:
    local = from_host(app)
    assert local("POST", "/v1/rules", json={"id": "a"}).status_code == 201
    admin = token(app, "admin")
    assert told(local("GET", "/v1/rules")) == (401, "authentication_required")
    assert local("DELETE", "/v1/tokens/admin", admin).status_code == 204
    refused = local("GET", "/v1/rules")
    assert told(refused) == (401, "authentication_required")
    assert refused.headers["www-authenticate"] == 'Bearer realm="ebpf-fw"'
    assert "ebpf-fw token create" in refused.json()["hint"]


def test_a_client_from_elsewhere_needs_them_from_the_start(app: FastAPI) -> None:
    assert told(from_afar(app)("GET", "/v1/status")) == (401, "authentication_required")


@pytest.mark.parametrize(
    ("client", "server"),
    [("127.0.0.1", "192.0.2.1"), ("192.0.2.1", "192.0.2.1"), ("203.0.113.7", "127.0.0.1")],
)
def test_a_loopback_address_at_one_end_is_not_enough(app: FastAPI, client: str, server: str) -> None:
    assert From(app, (client, 1), (server, 2))("GET", "/v1/status").status_code == 401


def test_both_ends_may_be_ipv6(app: FastAPI) -> None:
    assert From(app, ("::1", 1), ("::1", 2))("GET", "/v1/status").status_code == 200


@pytest.mark.parametrize(
    ("asked", "near", "far"),
    [
        ({"authentication": "required"}, 401, 401),
        ({"authentication": "none"}, 200, 200),
        ({"authentication": "auto"}, 200, 401),
    ],
)
def test_the_config_says_who_needs_them(
    enforcer: Enforcer, asked: dict[str, Any], near: int, far: int
) -> None:
    app = create_app(enforcer, settings=Api.model_validate(asked))
    assert from_host(app)("GET", "/v1/status").status_code == near
    assert from_afar(app)("GET", "/v1/status").status_code == far
    state = from_process(app, 0)("GET", "/v1/status").json()["api"]
    assert state["credentials_needed"] == (near == 401)
    app.state.running.close()


def test_an_open_api_is_said_so_in_the_status(enforcer: Enforcer) -> None:
    settings = Api.model_validate({"listen": "0.0.0.0:80", "insecure": True, "authentication": "none"})
    app = create_app(enforcer, settings=settings)
    state = from_host(app)("GET", "/v1/status").json()["api"]
    assert state["insecure"] and not state["tls"]
    assert [words in " ".join(state["warnings"]) for words in ("without TLS", "without authentication")] == [
        True,
        True,
    ]
    app.state.running.close()


# -- tokens


def test_a_token_is_told_once_and_works_in_both_headers(app: FastAPI) -> None:
    made = from_process(app, 0)("POST", "/v1/tokens", json={"scope": "read", "name": "ci", "ttl": "90d"})
    body = made.json()
    assert made.headers["cache-control"] == "no-store" and made.headers["location"] == "/v1/tokens/ci"
    assert re.fullmatch(r"efw_[0-9a-f]{12}_[0-9a-f]{64}", body["token"])
    far = from_afar(app)
    assert far("GET", "/v1/rules", body["token"]).status_code == 200
    assert far("GET", "/v1/rules", headers={"X-API-Key": body["token"]}).status_code == 200
    assert far("GET", "/v1/rules", headers={"authorization": f"bearer  {body['token']}"}).status_code == 200
    listed = from_process(app, 0)("GET", "/v1/tokens").json()
    assert listed["total"] == 1 and "token" not in listed["items"][0]
    used = parse_time(listed["items"][0]["last_used"])
    assert body["last_used"] is None and parse_time(body["created_at"]) - 1 <= used <= time.time()
    told = {**body, "last_used": listed["items"][0]["last_used"]}
    assert listed["items"][0] == {name: value for name, value in told.items() if name != "token"}
    assert listed["items"][0]["created_by"] == "uid:0" and not listed["items"][0]["expired"]


def test_two_must_be_the_same(app: FastAPI) -> None:
    """A wrong one is refused, never passed over for another."""
    right, other = token(app, "read", "right"), token(app, "read", "other")
    for headers in (
        [("Authorization", f"Bearer {right}"), ("X-API-Key", "x")],
        [("Authorization", "Bearer x"), ("X-API-Key", right)],
        [("Authorization", f"Bearer {right}"), ("X-API-Key", other)],
        [("Authorization", f"Bearer {right}"), ("Authorization", f"Bearer {other}")],
        [("X-API-Key", right), ("X-API-Key", "x")],
        [("Authorization", "Basic eA=="), ("X-API-Key", right)],
    ):
        assert told(from_afar(app)("GET", "/v1/rules", headers=headers)) == (401, "invalid_token"), headers
    twice = {"Authorization": f"Bearer {right}", "X-API-Key": right}
    assert from_afar(app)("GET", "/v1/rules", headers=twice).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer efw_0123456789ab_" + "0" * 64},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer ünï".encode()},
        {"Authorization": "Basic cm9vdDpyb290"},
        {"Authorization": "Bearer" + "x" * 5000},
        {"X-API-Key": "x"},
        {"X-API-Key": ""},
    ],
)
@pytest.mark.parametrize("where", ["host", "afar", "process"])
def test_a_wrong_one_is_refused_wherever_it_comes_from(
    app: FastAPI, headers: dict[str, Any], where: str
) -> None:
    origin = {"host": from_host, "afar": from_afar}.get(where, lambda app: from_process(app, 0))(app)
    refused = origin("GET", "/v1/rules", headers=headers)
    assert told(refused) == (401, "invalid_token")
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]


def test_an_expired_one_says_so(app: FastAPI, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = token(app, "read", ttl=60)
    now = enforcer._clock()
    monkeypatch.setattr(enforcer, "_clock", lambda: now + 61)
    assert told(from_afar(app)("GET", "/v1/rules", text)) == (401, "token_expired")


def test_a_revoked_one_is_refused_at_once(app: FastAPI) -> None:
    text = token(app, "admin")
    far = from_afar(app)
    assert far("DELETE", "/v1/tokens/admin", text).status_code == 204
    assert told(far("GET", "/v1/rules", text)) == (401, "invalid_token")
    assert told(from_process(app, 0)("DELETE", "/v1/tokens/admin")) == (404, "token_not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/scope"),
        ({"scope": "root"}, "/scope"),
        ({"scope": "read", "name": "a b"}, "/name"),
        ({"scope": "read", "name": ""}, "/name"),
        ({"scope": "read", "ttl": "soon"}, "/ttl"),
        ({"scope": "read", "ttl": 0}, "/ttl"),
        ({"scope": "read", "ttl": 60, "expires_at": "2099-01-01T00:00:00Z"}, "/expires_at"),
        ({"scope": "read", "expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
        ({"scope": "read", "expires_at": "tomorrow"}, "/expires_at"),
        ({"scope": "read", "expires": "1d"}, "/expires"),
    ],
)
def test_a_bad_wish_for_a_token_points_at_its_fault(api: ApiClient, body: Any, pointer: str) -> None:
    refused = api("POST", "/v1/tokens", body)
    assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == pointer
    assert api("GET", "/v1/tokens").json()["total"] == 0


def test_two_tokens_of_one_name_are_a_conflict(app: FastAPI) -> None:
    token(app, "read", "ci")
    assert told(from_process(app, 0)("POST", "/v1/tokens", json={"scope": "read", "name": "ci"})) == (
        409, "token_exists",
    )  # fmt: skip


# -- scopes


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def test_every_route_is_in_the_table(openapi_document: dict[str, Any]) -> None:
    """A route that somebody adds needs admin until it is named there; it shall be named."""
    assert not [path for _, path, _ in calls(openapi_document) if not is_listed(path)]


def test_what_is_not_in_the_table_needs_admin(app: FastAPI) -> None:
    assert needed("GET", "/v1/new") == needed("POST", "/nothing") == needed("GET", "/") == ADMIN
    text = token(app, "rules")
    assert told(from_afar(app)("GET", "/v1/new", text)) == (403, "insufficient_scope")
    assert told(from_afar(app)("GET", "/v1/new", token(app, "admin"))) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/v1/rules", READ), ("HEAD", "/v1/rules", READ), ("OPTIONS", "/v1/rules", READ),
        ("POST", "/v1/rules", RULES), ("DELETE", "/v1/rules/a", RULES), ("PATCH", "/v1/rules/tokens", RULES),
        ("POST", "/v1/rules/a/promote", RULES), ("POST", "/v1/rules/import", RULES), ("PUT", "/v1/ruleset", RULES),
        ("POST", "/v1/confirm", RULES), ("POST", "/v1/rollback", RULES), ("POST", "/v1/test", RULES),
        ("PUT", "/v1/sets/bad", RULES), ("GET", "/v1/sets/bad", READ),
        ("GET", "/v1/events", READ), ("GET", "/v1/capture", ADMIN), ("GET", "/metrics", READ),
        ("PUT", "/v1/interfaces/eth0", ADMIN), ("GET", "/v1/interfaces", READ), ("POST", "/v1/panic", ADMIN),
        ("GET", "/v1/panic", READ), ("GET", "/v1/tokens", ADMIN), ("POST", "/v1/tokens", ADMIN),
        ("DELETE", "/v1/tokens/a", ADMIN), ("GET", "/v1/audit", ADMIN),
        ("GET", "/healthz", OPEN), ("GET", "/readyz", OPEN), ("GET", "/docs", OPEN), ("GET", "/openapi.json", OPEN),
        ("GET", "/v1/ruleset2", ADMIN), ("GET", "/v1/rules2", ADMIN), ("GET", "/healthz2", ADMIN),
        ("GET", "/v1/tokens/../rules", ADMIN), ("GET", "//v1/rules", ADMIN), ("BREW", "/v1/rules", RULES),
    ],
)  # fmt: skip
def test_the_scope_that_a_request_needs(method: str, path: str, needs: str) -> None:
    assert needed(method, path) == needs


def test_each_scope_may_what_those_before_it_may() -> None:
    assert [[suffices(has, needs) for needs in SCOPES] for has in SCOPES] == [
        [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip
    assert {needs for row in TABLE.values() for needs in row} == {OPEN, *SCOPES}


def test_no_route_lets_in_nobody_or_a_scope_that_does_not_suffice(
    app: FastAPI, openapi_document: dict[str, Any]
) -> None:
    tokens = {scope: token(app, scope) for scope in SCOPES}
    far = from_afar(app)
    rows = list(calls(openapi_document))
    assert len(rows) > 30
    for method, path, operation in rows:
        place, needs = path.format(**EXAMPLE), needed(method, path)
        assert operation.get("x-required-scope", OPEN) == needs
        if needs == OPEN:
            assert far(method, place).status_code in (200, 503)
            continue
        assert {"401", "403", "429"} <= operation["responses"].keys(), path
        assert told(far(method, place)) == (401, "authentication_required"), path
        for scope, text in tokens.items():
            if suffices(scope, needs):
                continue
            refused = far(method, place, text)
            assert told(refused) == (403, "insufficient_scope"), (method, path, scope)
            assert f'scope="{needs}"' in refused.headers["www-authenticate"]
    assert from_process(app, 0)("GET", "/v1/rules").json()["total"] == 0


def test_the_short_way_is_guarded_too(app: FastAPI) -> None:
    text = token(app, "read")
    far = from_afar(app)
    for method, path in (("POST", "/v1/rules"), ("PUT", "/v1/rules/a"), ("DELETE", "/v1/rules/a")):
        assert told(far(method, path, json={"id": "a"})) == (401, "authentication_required")
        assert told(far(method, path, text, json={"id": "a"})) == (403, "insufficient_scope")
    assert far("GET", "/v1/rules", text).json()["total"] == 0


@pytest.mark.parametrize("call", ["confirm", "rollback"])
def test_what_waits_is_decided_by_who_could_have_made_it(app: FastAPI, call: str) -> None:
    """Taking back that an interface is attached takes its filters off."""
    rules, admin = from_afar(app), from_process(app, 0)
    text = token(app, "rules")
    attached = admin("PUT", "/v1/interfaces/eth0?confirm_within=60", json={"mode": "generic"})
    assert attached.is_success and "Confirm-Id" in attached.headers
    rule = {"id": "a", "sources": "10.0.0.1"}
    mine = rules("POST", "/v1/rules?confirm_within=60", text, json=rule).headers["Confirm-Id"]
    for query in ("", f"?id={attached.headers['Confirm-Id']}"):
        refused = rules("POST", f"/v1/{call}{query}", text)
        assert (
            told(refused) == (403, "insufficient_scope") and "/v1/interfaces/eth0" in refused.json()["detail"]
        )
    assert len(admin("GET", "/v1/changes").json()["pending"]) == 2
    assert rules("POST", f"/v1/{call}?id={mine}", text).status_code == 200
    assert admin("POST", f"/v1/{call}").status_code == 200
    assert admin("GET", "/v1/changes").json()["pending"] == []


def test_a_body_is_not_read_for_somebody_who_is_not_let_in(app: FastAPI) -> None:
    read: list[int] = []

    async def body() -> Any:
        for part in range(10):
            read.append(part)
            yield b"x" * 1000

    assert from_afar(app)("POST", "/v1/rules", content=body()).status_code == 401
    assert read == []


def test_the_openapi_document_names_the_ways_to_be_let_in(openapi_document: dict[str, Any]) -> None:
    schemes = openapi_document["components"]["securitySchemes"]
    assert {each["type"] for each in schemes.values()} == {"http", "apiKey", "mutualTLS"}
    for _, path, operation in calls(openapi_document):
        named = {name for way in operation["security"] for name in way}
        assert named == (set() if needed("GET", path) == OPEN else schemes.keys()), path


# -- the Unix socket


def test_root_may_do_everything_over_the_unix_socket_and_needs_no_token(app: FastAPI) -> None:
    token(app, "read")
    assert from_process(app, 0)("POST", "/v1/rules", json={"id": "a"}).status_code == 201


def test_another_user_is_refused_unless_in_the_group_or_with_a_token(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.access, "_group", 777)
    text = token(app, "read")
    refused = from_process(app, 65534, 65534)("GET", "/v1/rules")
    assert told(refused) == (403, "peer_not_allowed")
    assert "65534" in refused.json()["detail"] and "ebpf-fw" in refused.json()["hint"]
    assert from_process(app, 65534, 100, 777)("POST", "/v1/rules", json={"id": "a"}).status_code == 201
    assert from_process(app, 65534)("GET", "/v1/rules", text).status_code == 200
    assert told(from_process(app, 0, 777)("DELETE", "/v1/rules/a", text)) == (403, "insufficient_scope")


def test_without_the_group_on_this_host_nobody_is_in_it(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.access, "_group", None)
    assert from_process(app, 65534, 0)("GET", "/v1/rules").status_code == 403


def test_a_peer_that_the_kernel_does_not_tell_of_is_refused(app: FastAPI) -> None:
    assert told(From(app, None, UNIX)("GET", "/v1/rules")) == (403, "peer_not_allowed")
    assert told(From(app, None, None)("GET", "/v1/rules")) == (403, "peer_not_allowed")


# -- certificates


@pytest.fixture
def with_certificates(enforcer: Enforcer) -> Iterator[FastAPI]:
    settings = Api(
        tls_certificate="/a", tls_key="/b", client_ca="/c", client_scopes={"monitor": "read", "ops": "admin"}
    )
    made = create_app(enforcer, settings=settings)
    yield made
    made.state.running.close()


def test_the_name_in_a_certificate_is_a_scope(with_certificates: FastAPI) -> None:
    monitor = from_afar(with_certificates, names=("monitor.example.org", "monitor"))
    assert monitor("GET", "/v1/rules").status_code == 200
    assert told(monitor("POST", "/v1/rules", json={})) == (403, "insufficient_scope")
    assert (
        from_afar(with_certificates, names=("ops",))("POST", "/v1/rules", json={"id": "a"}).status_code == 201
    )


def test_a_certificate_of_another_name_needs_a_token_besides(with_certificates: FastAPI) -> None:
    text = token(with_certificates, "read")
    other = from_afar(with_certificates, names=("other",))
    refused = other("GET", "/v1/rules")
    assert told(refused) == (401, "authentication_required") and "'other'" in refused.json()["detail"]
    assert other("GET", "/v1/rules", text).status_code == 200


def test_a_star_is_any_other_name(enforcer: Enforcer) -> None:
    settings = Api(
        tls_certificate="/a", tls_key="/b", client_ca="/c", client_scopes={"*": "read", "ops": "admin"}
    )
    app = create_app(enforcer, settings=settings)
    assert from_afar(app, names=("x",))("GET", "/v1/rules").status_code == 200
    assert from_afar(app, names=("x",))("DELETE", "/v1/rules/a").status_code == 403
    assert from_afar(app, names=("ops",))("DELETE", "/v1/rules/a").status_code == 404
    assert from_afar(app)("GET", "/v1/rules").status_code == 401
    app.state.running.close()


def test_names_are_those_of_the_subject_and_its_alternatives() -> None:
    certificate = {
        "subject": ((("organizationName", "o"),), (("commonName", "cn"),)),
        "subjectAltName": (("DNS", "a.example"), ("email", "a@example.org")),
    }
    assert list(certificate_names(certificate)) == ["a.example", "a@example.org", "cn"]
    assert list(certificate_names({})) == []


# -- hosts and pages


def test_a_name_of_this_host_is_one_that_the_config_allows(enforcer: Enforcer) -> None:
    app = create_app(enforcer, settings=Api(allowed_hosts=["fw.example.org"]))
    local = from_host(app)
    for host in ("fw.example.org", "FW.example.org:9443", "fw.example.org.", "127.0.0.1", "localhost"):
        assert local("GET", "/v1/rules", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "x.fw.example.org", "fw.example.org.evil.example", "fw.example.org@evil"):
        assert told(local("GET", "/v1/rules", headers={"Host": host})) == (421, "misdirected_request"), host
    app.state.running.close()


def test_a_page_gets_no_permission_to_ask_from_elsewhere(app: FastAPI) -> None:
    asking = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert from_host(app)("OPTIONS", "/v1/rules", headers=asking).status_code == 405
    read = from_host(app)("GET", "/v1/rules", headers={"Origin": "http://evil.example"})
    assert not [name for name in read.headers if name.startswith("access-control")]


def test_not_even_a_token_lets_a_page_change_something(app: FastAPI) -> None:
    text = token(app, "admin")
    refused = from_host(app)("POST", "/v1/rules", text, json={}, headers={"Origin": "http://127.0.0.1:9378"})
    assert told(refused) == (403, "cross_origin")


# -- the request's id and reason


def test_the_request_id_of_the_client_is_kept_if_it_is_one(app: FastAPI) -> None:
    local = from_host(app)
    assert (
        local("GET", "/v1/rules", headers={"X-Request-Id": "trace-1:2"}).headers["x-request-id"]
        == "trace-1:2"
    )
    for bad in ("a b", "x" * 65, "ü".encode(), ""):
        made = local("GET", "/v1/nothing", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}", made)


def test_a_reason_that_is_too_long_is_refused_and_nothing_is_changed(app: FastAPI) -> None:
    local = from_host(app)
    refused = local("POST", "/v1/rules", json={"id": "a"}, headers={"X-Reason": "x" * 501})
    assert told(refused) == (422, "invalid_header")
    assert local("GET", "/v1/rules").json()["total"] == 0


# -- failed attempts


def test_who_fails_too_often_is_told_to_wait_and_others_are_not(app: FastAPI) -> None:
    right = token(app, "read")
    far = from_afar(app)
    answers = [far("GET", "/v1/rules", "wrong") for _ in range(BURST + 3)]
    assert [each.status_code for each in answers] == [401] * BURST + [429] * 3
    last = answers[-1]
    assert last.json()["code"] == "too_many_attempts" and 1 <= int(last.headers["retry-after"]) <= 6
    assert last.headers["connection"] == "close"
    assert from_afar(app, "203.0.113.8")("GET", "/v1/rules", "wrong").status_code == 401
    assert far("GET", "/v1/rules", right).status_code == 200  # nobody is locked out by another's failures
    assert far("GET", "/healthz").status_code == 200


def test_the_unix_socket_is_never_told_to_wait(app: FastAPI) -> None:
    root = from_process(app, 0)
    assert {root("GET", "/v1/rules", "wrong").status_code for _ in range(BURST + 5)} == {401}
    assert root("GET", "/v1/rules").status_code == 200


def test_a_bucket_fills_again_with_time() -> None:
    now = 0.0
    found = Attempts(lambda: now)
    assert [found.fail("203.0.113.7") for _ in range(BURST + 2)] == [0] * BURST + [6, 6]
    now += attempts.REFILL_S + 0.1
    assert [found.fail("203.0.113.7") for _ in range(2)] == [0, 6]


def test_a_network_of_ipv6_is_one_source() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1" and network_of("fe80::1%eth0") == "fe80::/64"


def test_however_many_fail_the_memory_is_bounded() -> None:
    found = Attempts()
    for number in range(MOST_SOURCES + 500):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        found.fail(address)
        found.note(Origin("anonymous", f"{address}:1"), "invalid_token")
    assert len(found._buckets) == MOST_SOURCES and len(found._noted) <= MOST_NOTED + 1
    told_of = found.drain()
    assert len(told_of) <= MOST_TOLD + 1 and sum(each.times for each in told_of) == MOST_SOURCES + 500
    assert OTHERS in {each.origin.source for each in told_of}
    assert found.drain() == []
