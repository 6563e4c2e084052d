"""Every error is application/problem+json with the status of its class. ApiClient checks the shape."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from api.errors import STATUS, status_of
from api.schemas import ProblemDetails
from firewall import errors as firewall_errors
from firewall.enforcer import Enforcer
from firewall.errors import FirewallError, ProgramRejected, StoreFailed
from firewall.rule import WRITABLE
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel


def error_classes() -> list[type[FirewallError]]:
    found = [each for each in vars(firewall_errors).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, FirewallError)]


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_the_table_has_every_class(kind: type[FirewallError]) -> None:
    assert status_of(kind("detail")) == STATUS[kind]


def test_a_full_map_is_told_with_its_setting_and_nothing_is_written(api: ApiClient) -> None:
    add = [{"sources": f"10.0.{number >> 8}.{number & 255}"} for number in range(1001)]
    refused = api("POST", "/v1/rules/batch", {"add": add})
    assert (refused.status_code, refused.json()["code"]) == (507, "table_full")
    members = {name: refused.json()[name] for name in ("table", "capacity", "wanted", "setting")}
    assert members == {"table": "address4", "capacity": 1000, "wanted": 1001, "setting": "bpf.max_addresses"}
    assert api("GET", "/v1/rules").json()["total"] == 0
    assert api("POST", "/v1/rules/batch", {"add": add[:1000]}).json()["added"] == 1000


def test_a_refusal_of_the_kernel_leaves_store_and_kernel_as_they_were(
    api: ApiClient, kernel: MemoryKernel
) -> None:
    kernel.fail_next = errno.ENOMEM
    refused = api("POST", "/v1/rules", {"id": "a", "sources": "203.0.113.7"})
    assert (refused.status_code, refused.json()["errno"]) == (503, "ENOMEM")
    assert kernel.entries == {}
    assert api("GET", "/v1/rules/a").status_code == 404
    assert api("POST", "/v1/rules", {"id": "a", "sources": "203.0.113.7"}).status_code == 201


def failing(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_rejected_program_brings_the_verifiers_lines(
    api: ApiClient, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = ProgramRejected(
        "the verifier rejected xdp_filter", errno=errno.EACCES, log="R1 invalid mem access"
    )
    monkeypatch.setattr(enforcer, "attach", failing(rejected))
    problem = api("PUT", "/v1/interfaces/eth0").json()
    assert (problem["status"], problem["code"]) == (503, "program_rejected")
    assert (problem["errno"], problem["log"]) == ("EACCES", "R1 invalid mem access")


def test_a_store_that_fails_is_a_503(
    api: ApiClient, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcer, "add", failing(StoreFailed("disk full", "free some space")))
    problem = api("POST", "/v1/rules", {}).json()
    assert (problem["status"], problem["code"], problem["hint"]) == (503, "store_failed", "free some space")


def test_an_unforeseen_exception_tells_the_log_and_not_the_client(
    api: ApiClient, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcer, "rule", failing(RuntimeError("secret inside")))
    with capture_logs() as logged:
        refused = api("GET", "/v1/rules/a")
    assert (refused.status_code, refused.json()["code"]) == (500, "internal")
    assert "secret inside" not in refused.text
    assert [(each["event"], each["path"], each["exc_info"]) for each in logged] == [
        ("request failed", "/v1/rules/a", True)
    ]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/rules/", "/v1/rules/a/b", "/v2/rules", "/redoc"])
def test_an_unknown_path_is_a_404(api: ApiClient, path: str) -> None:
    missing = api("GET", path)
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/rules", "GET, POST"),
        ("POST", "/v1/rules/a", "DELETE, GET, PATCH, PUT"),
        ("PATCH", "/v1/ruleset", "GET, PUT"),
        ("POST", "/v1/status", "GET"),
        ("POST", "/docs", "GET"),
    ],
)
def test_a_method_that_is_not_possible_is_a_405_that_lists_those_that_are(
    api: ApiClient, method: str, path: str, allowed: str
) -> None:
    refused = api(method, path)
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1 column 2"),
        (b'{"id": "a",\n "enabled": tru}', "line 2"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"priority": NaN}', "line 1 column 14"),
        (b"[" * 5000, "depth"),
        (b'{"id": "\\ud800"}', "line 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_json_is_told_with_the_position(api: ApiClient, content: bytes, words: str) -> None:
    refused = api("POST", "/v1/rules", content=content)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_json")
    assert words in refused.json()["detail"]


@pytest.mark.parametrize("content", [b"null", b"[]", b'"rule"', b"7", b""])
@pytest.mark.parametrize("path", ["/v1/rules", "/v1/rules/batch"])
def test_a_body_that_is_no_object_is_told_so(api: ApiClient, content: bytes, path: str) -> None:
    refused = api("POST", path, content=content)
    assert (refused.status_code, refused.json()["code"], pointers(refused)) == (422, "invalid_body", [""])
    assert "JSON object" in refused.json()["detail"]


def test_a_pointer_escapes_what_json_pointers_escape(api: ApiClient) -> None:
    refused = api("PUT", "/v1/interfaces/eth0", {"a/b~c": 1})
    assert pointers(refused) == ["/a~1b~0c"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NEARLY_RIGHT = st.sampled_from(
    ["0.0.0.0/0", "::/0", "::ffff:1.2.3.4", "1.2.3.4/33", "tcp", "0-65535", "8/0", "1h", "99999999999s",
     "eth*", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00",
     "٣", "1e3", "-1", "+1", " 1", "\x00", "a" * 70]
)  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from(sorted(WRITABLE)), JSON | NEARLY_RIGHT | st.lists(NEARLY_RIGHT, max_size=2), max_size=4
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=FIELDS, method=st.sampled_from(["POST", "PUT", "PATCH"]))
def test_no_body_is_too_odd_for_an_answer(api: ApiClient, fields: dict[str, Any], method: str) -> None:
    content = json.dumps(fields).encode()
    api("PUT", "/v1/ruleset", {"rules": [{"id": "a"}]})
    answer = api(method, "/v1/rules" if method == "POST" else "/v1/rules/a", content=content)
    assert answer.status_code in (200, 201, 409, 422), (answer.text, content)
    if answer.status_code == 422:
        assert ProblemDetails.model_validate_json(answer.content).detail
    assert api("GET", "/v1/ruleset").status_code == 200
    assert api("GET", "/v1/rules").status_code == 200
