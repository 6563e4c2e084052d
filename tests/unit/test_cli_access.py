"""Who the command line says it is: tokens, certificates, reasons; and the commands about tokens and the audit."""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import session
from cli.__main__ import app
from cli.client import Credentials, Endpoint
from tests.api.certificates import Authority
from tests.unit.fake_service import FakeService, fake_service

TEXT = "efw_0123456789ab_" + "0" * 64
EMPTY = {"pending": [], "recent": []}
TOKEN = {
    "name": "ci", "scope": "rules", "created_at": "2026-01-01T00:00:00Z", "created_by": "uid:0",
    "expires_at": "2026-04-01T00:00:00Z", "expired": False, "last_used": None,
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "id": 7, "time": "2026-01-01T00:00:00Z", "kind": "change", "actor": "token:ci", "source": "203.0.113.7:5",
    "request_id": "q", "call": "POST /v1/rules", "reason": "ticket 7", "action": "rule.add", "target": "web-1",
    "before": None, "after": [{"id": "web-1"}], "summary": {"added": 3, "digest": "sha256:x"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY", "WHY", "URL"):
        monkeypatch.delenv(f"EBPF_FW_{name}", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(session, "TOKEN_FILE", tmp_path / "default-token")
    monkeypatch.setattr(session, "DEFAULT_CONFIG", tmp_path / "none.toml")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        running.answers("GET", "/v1/changes", 200, EMPTY)
        yield running


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def sent(service: FakeService, *arguments: str) -> dict[str, str]:
    result = run("changes", *arguments)
    assert result.exit_code == 0, result.output
    return {name.lower(): value for name, value in service.requests[-1].headers.items()}


# -- credentials


def test_without_a_token_none_is_sent(service: FakeService) -> None:
    assert "authorization" not in sent(service)


def test_a_token_comes_from_option_file_or_variable_in_this_order(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, default = tmp_path / "token", tmp_path / "default-token"
    file.write_text("of-file\n")
    default.write_text("of-default\n")
    assert sent(service)["authorization"] == "Bearer of-default"
    monkeypatch.setenv("EBPF_FW_TOKEN_FILE", str(file))
    assert sent(service)["authorization"] == "Bearer of-file"
    monkeypatch.setenv("EBPF_FW_TOKEN", "of-variable")
    assert sent(service)["authorization"] == "Bearer of-variable"
    assert sent(service, "--token-file", str(file))["authorization"] == "Bearer of-file"
    assert sent(service, "--token", "of-option")["authorization"] == "Bearer of-option"


def test_options_stand_before_the_command_too(service: FakeService) -> None:
    run("--token", TEXT, "--why", "x", "changes")
    headers = service.requests[-1].headers
    assert headers["Authorization"] == f"Bearer {TEXT}" and headers["X-Reason"] == "x"


@pytest.mark.parametrize("content", [None, "", "\n", "ü"])
def test_a_file_that_holds_no_token_is_a_usage_error(
    service: FakeService, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    result = run("changes", "--token-file", str(file))
    assert result.exit_code == 2 and str(file) in re.sub(r"[\s│]", "", result.stderr)
    assert not service.requests


def test_a_token_with_a_line_break_is_a_usage_error(service: FakeService) -> None:
    assert run("changes", "--token", "a\nb").exit_code == 2 and not service.requests


def test_the_reason_of_a_change_is_sent(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBPF_FW_WHY", "ticket 7")
    assert sent(service)["x-reason"] == "ticket 7"
    assert sent(service, "--why", "Störung")["x-reason"].encode("latin-1").decode() == "Störung"


@pytest.mark.parametrize(
    ("url", "is_private"),
    [
        ("127.0.0.1:9378", True), ("http://[::1]:9378", True), ("http://localhost:1", True),
        ("unix:/run/x.sock", True), ("https://fw.example.org", True),
        ("http://192.0.2.1:9378", False), ("fw.example.org:9378", False),
    ],
)  # fmt: skip
def test_where_a_token_can_be_read_on_the_way(url: str, is_private: bool) -> None:
    assert Endpoint.parse(url).is_private == is_private


def test_the_default_file_goes_to_no_place_where_it_can_be_read_and_to_no_unix_socket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "default-token").write_text("secret")
    run_of = session.Session()
    assert run_of.credentials(Endpoint.parse("https://fw.example.org")).token == "secret"
    assert run_of.credentials(Endpoint.parse("http://192.0.2.1:1")).token is None
    assert run_of.credentials(Endpoint.parse("unix:/run/x.sock")).token is None
    told = session.Session(token="told").credentials(Endpoint.parse("http://192.0.2.1:1"))
    assert told.token == "told" and "unencrypted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('listen = "127.0.0.1:1"', "127.0.0.1:1"),
        ('insecure = true\nlisten = "0.0.0.0:1"', "127.0.0.1:1"),
        ('tls_certificate = "/a"\ntls_key = "/b"\nlisten = ["[::]:1", "unix:/run/x"]', "unix:/run/x"),
        ('tls_certificate = "/a"\ntls_key = "/b"\nlisten = "[::]:1"', "https://[::1]:1"),
        ('tls_certificate = "/a"\ntls_key = "/b"\nlisten = "192.0.2.1:1"', "https://192.0.2.1:1"),
    ],
)
def test_the_address_of_the_config_is_asked_as_this_host_asks(
    tmp_path: Path, text: str, address: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[api]\n{text}\n")
    assert session.Session(config=config).address() == address


# -- refused


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "authentication_required"),
        (403, "insufficient_scope"),
        (403, "peer_not_allowed"),
        (429, "too_many_attempts"),
    ],
)
def test_who_is_not_let_in_gets_exit_code_4_and_the_services_words(
    service: FakeService, status: int, code: str
) -> None:
    service.refuses("GET", "/v1/tokens", status, code, detail="this needs more", hint="ask somebody")
    result = run("token", "list")
    assert result.exit_code == 4
    assert "this needs more" in result.stderr and "hint: ask somebody" in result.stderr


# -- TLS


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = json.dumps(EMPTY).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Authority, Authority]]:
    """A service that wants certificates of clients: its URL, its authority, and that of the clients."""
    ours, clients = Authority(tmp_path, "ours"), Authority(tmp_path, "clients")
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    ours.write_server(certificate, key, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(clients.pem)
    context.verify_mode = ssl.CERT_REQUIRED
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", ours, clients
    server.shutdown()
    server.server_close()
    thread.join()


def test_tls_needs_the_authority_and_gives_the_clients_certificate(
    secure: tuple[str, Authority, Authority], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ours, clients = secure
    certificate, key = clients.client("me")
    refused = run("changes", "--url", url)
    assert refused.exit_code == 3 and "--ca" in refused.stderr
    shown = ("--ca", str(ours.pem), "--cert", certificate, "--key", key)
    assert run("changes", "--url", url, *shown).exit_code == 0
    assert run("changes", "--url", url, "--ca", str(ours.pem)).exit_code == 3
    for name, value in (("CA", str(ours.pem)), ("CERT", certificate), ("KEY", key)):
        monkeypatch.setenv(f"EBPF_FW_{name}", value)
    assert run("changes", "--url", url).exit_code == 0


def test_a_file_that_is_no_certificate_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    result = run("changes", "--url", "https://127.0.0.1:1", "--ca", str(tmp_path / "x.pem"))
    assert result.exit_code == 2 and "certificates" in result.stderr


def test_no_certificate_is_read_where_there_is_no_tls() -> None:
    assert Credentials(ca="/nowhere").headers() == {}


# -- ebpf-fw token


def test_a_made_token_is_alone_on_standard_output(service: FakeService) -> None:
    service.answers("POST", "/v1/tokens", 201, {**TOKEN, "token": TEXT})
    result = run("token", "create", "ci", "--scope", "rules", "--expires", "90d")
    assert result.exit_code == 0 and result.stdout == f"{TEXT}\n"
    assert "not shown again" in result.stderr and "2026-04-01" in result.stderr
    assert service.requests[-1].body == {"scope": "rules", "name": "ci", "ttl": "90d"}


def test_without_name_and_end_the_service_chooses(service: FakeService) -> None:
    service.answers("POST", "/v1/tokens", 201, {**TOKEN, "token": TEXT, "expires_at": None})
    result = run("token", "create", "--scope", "read", "--json")
    assert json.loads(result.stdout)["token"] == TEXT
    assert service.requests[-1].body == {"scope": "read"}


@pytest.mark.parametrize("moment", ["2030-01-01T00:00:00Z", "2030-01-01"])
def test_an_end_may_be_a_moment(service: FakeService, moment: str) -> None:
    service.answers("POST", "/v1/tokens", 201, {**TOKEN, "token": TEXT})
    run("token", "create", "--scope", "read", "--expires", moment)
    assert service.requests[-1].body == {"scope": "read", "expires_at": moment}


def test_a_token_is_written_to_a_file_of_its_owner_alone(service: FakeService, tmp_path: Path) -> None:
    service.answers("POST", "/v1/tokens", 201, {**TOKEN, "token": TEXT})
    file = tmp_path / "token"
    result = run("token", "create", "--scope", "admin", "--write", str(file))
    assert result.exit_code == 0 and TEXT not in result.output
    assert file.read_text() == f"{TEXT}\n" and stat.S_IMODE(os.stat(file).st_mode) == 0o600
    again = run("token", "create", "--scope", "admin", "--write", str(file))
    assert again.exit_code == 2 and len(service.requests) == 1  # before one is made that could not be kept


def test_a_file_for_a_token_that_was_refused_does_not_stay(service: FakeService, tmp_path: Path) -> None:
    service.refuses("POST", "/v1/tokens", 409, "token_exists")
    assert run("token", "create", "ci", "--scope", "read", "--write", str(tmp_path / "t")).exit_code == 4
    assert not (tmp_path / "t").exists()


def test_a_scope_must_be_one(service: FakeService) -> None:
    assert run("token", "create").exit_code == 2
    assert run("token", "create", "--scope", "root").exit_code == 2


def test_tokens_are_listed_and_revoked(service: FakeService) -> None:
    used = "2026-02-03T04:05:06Z"
    items = [
        TOKEN,
        {**TOKEN, "name": "old", "expired": True},
        {**TOKEN, "name": "ever", "expires_at": None, "last_used": used},
    ]
    service.answers("GET", "/v1/tokens", 200, {"items": items, "total": 3})
    lines = run("token", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SCOPE", "CREATED", "BY", "EXPIRES", "LAST", "USED"]
    assert lines[2].split()[-2:] == [TOKEN["expires_at"], "never"] and "(expired)" in lines[3]
    assert lines[4].split()[-2:] == ["never", used]
    service.answers("DELETE", "/v1/tokens/ci", 204)
    service.answers("DELETE", "/v1/tokens/old", 204)
    result = run("token", "revoke", "ci", "old")
    assert result.stdout == "revoked ci\nrevoked old\n"
    service.refuses("DELETE", "/v1/tokens/x", 404, "token_not_found")
    assert run("token", "revoke", "x").exit_code == 12


# -- ebpf-fw audit


def test_the_audit_is_a_table_with_filters(service: FakeService) -> None:
    service.answers("GET", "/v1/audit", 200, {"items": [ENTRY], "next_before": None})
    result = run("audit", "--actor", "token:ci", "--action", "rule", "--since", "2026-01-01T00:00:00Z")
    assert result.exit_code == 0, result.output
    row = result.stdout.splitlines()[2]
    for words in ("7", "token:ci", "203.0.113.7:5", "rule.add", "web-1", "ticket 7", "added 3"):
        assert words in row
    assert "sha256" not in row
    query = service.requests[-1].query
    assert query["actor"] == ["token:ci"] and query["page_size"] == ["100"] and "target" not in query


def test_the_audit_goes_on_page_by_page_up_to_a_limit(service: FakeService) -> None:
    page = {"items": [ENTRY] * 1000, "next_before": 7}
    service.answers("GET", "/v1/audit", 200, page)
    service.answers("GET", "/v1/audit", 200, {"items": [ENTRY] * 500, "next_before": 3})
    result = run("audit", "--limit", "1500", "--json")
    document = json.loads(result.stdout)
    assert len(document["items"]) == 1500 and document["next_before"] == 3
    assert [each.query.get("before") for each in service.requests] == [None, ["7"]]
    assert [each.query["page_size"] for each in service.requests] == [["1000"], ["500"]]
