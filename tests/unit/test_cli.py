"""The command line against a scripted service: what it sends, what it prints, how it exits."""

import json
import os
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.slow_start import SlowStart
from cli import session
from cli.__main__ import app
from firewall import settings
from firewall.errors import InvalidInput, Problem
from firewall.kernel.finding import Finding
from tests.unit.fake_service import FakeService, fake_service

ROOT = Path(__file__).parents[2]

RULE: dict[str, Any] = {
    "id": "web-1",
    "description": "scanner",
    "enabled": True,
    "action": "drop",
    "priority": 1000,
    "direction": "ingress",
    "interfaces": [],
    "family": "any",
    "sources": ["203.0.113.0/24"],
    "destinations": [],
    "protocols": ["tcp"],
    "source_ports": [],
    "destination_ports": ["22", "8000-8100"],
    "icmp_types": [],
    "tcp_flags": {"set": ["syn"], "unset": ["ack"]},
    "ttl": None,
    "labels": {"team": "web"},
    "stats": {"packets": 1234, "bytes": 56789, "last_hit": None},
}
HOOK = {"attached": True, "mode": "native", "program_id": 7, "program_name": "xdp_filter", "error": None}
INTERFACE: dict[str, Any] = {
    "name": "eth7",
    "ifindex": 7,
    "present": True,
    "mode": "auto",
    "ingress": True,
    "egress": True,
    "actual_mode": "generic",
    "native_unavailable": "EOPNOTSUPP",
    "hooks": [{"hook": "ingress", **HOOK, "mode": "generic"}, {"hook": "egress", **HOOK, "mode": None}],
}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "ready": False,
    "not_ready": ["eth7: ingress is not attached"],
    "uptime_s": 93784.5,
    "started_at": "2026-01-01T00:00:00Z",
    "kernel": "6.1.0",
    "bcc": "0.26.0",
    "pin_root": "/sys/fs/bpf/ebpf-fw",
    "rules": 12345,
    "revision": 9,
    "default_actions": {"ingress": "allow", "egress": "drop"},
    "hooks": [{"interface": "eth7", "hook": "ingress", **HOOK}],
    "maps": [{"name": "addr_in", "used": 524288, "capacity": 1048576, "setting": "bpf.max_addresses"}],
    "drift": [],
    "last_error": "the disk was full",
    "never_drop": ["192.0.2.1", "2001:db8::/32"],
    "panic": {"on": False, "until": None, "left_s": 0, "connections": 0},
}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.delenv("COLUMNS", raising=False)
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        yield running


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin, prog_name="ebpf-fw")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def page(*rules: dict[str, Any], number: int = 1, of: int = 1, total: int | None = None) -> dict[str, Any]:
    total = len(rules) if total is None else total
    return {"items": list(rules), "total": total, "page": number, "page_size": 1000, "total_pages": of}


# rule add


def test_rule_add_sends_only_what_was_given(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, RULE)
    result = run("rule", "add", "--source", "203.0.113.0/24")
    assert result.exit_code == 0
    assert result.stdout == (
        "added web-1: drop from 203.0.113.0/24 tcp to port 22, 8000-8100 flags +syn -ack\n"
    )
    assert service.requests[0].body == {"sources": ["203.0.113.0/24"]}


def test_rule_add_turns_every_option_into_its_field(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, RULE)
    result = run(
        *("rule", "add", "--id", "web-1", "--description", "scanner", "--action", "allow"),
        *("--priority", "10"),
        *("--direction", "both", "--interface", "eth*", "--interface", "wg0", "--family", "ipv4"),
        *("--source", "203.0.113.0/24,198.51.100.7", "--destination", "192.0.2.1", "--protocol", "tcp"),
        *("--source-port", "1024-65535", "--destination-port", "22,8000-8100", "--icmp-type", "3/1"),
        *("--tcp-flags-set", "syn,ack", "--tcp-flags-unset", "rst", "--ttl", "1h"),
        *("--label", "team=web", "--label", "why=a=b", "--disabled"),
    )
    assert result.exit_code == 0
    assert service.requests[0].body == {
        "id": "web-1",
        "description": "scanner",
        "action": "allow",
        "priority": 10,
        "direction": "both",
        "interfaces": ["eth*", "wg0"],
        "family": "ipv4",
        "sources": ["203.0.113.0/24", "198.51.100.7"],
        "destinations": ["192.0.2.1"],
        "protocols": ["tcp"],
        "source_ports": ["1024-65535"],
        "destination_ports": ["22", "8000-8100"],
        "icmp_types": ["3/1"],
        "tcp_flags": {"set": ["syn", "ack"], "unset": ["rst"]},
        "ttl": "1h",
        "labels": {"team": "web", "why": "a=b"},
        "enabled": False,
    }


def test_a_ttl_of_digits_is_sent_as_seconds(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, RULE)
    run("rule", "add", "--source", "192.0.2.1", "--ttl", "90")
    assert service.requests[0].body["ttl"] == 90


def test_adding_the_same_rule_again_succeeds_and_says_so(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 200, RULE)
    result = run("rule", "add", "--id", "web-1", "--source", "203.0.113.0/24")
    assert result.exit_code == 0
    assert "already there" in result.stdout


def test_rule_add_reads_a_file_and_options_change_it(service: FakeService, tmp_path: Path) -> None:
    service.answers("POST", "/v1/rules", 201, RULE)
    file = tmp_path / "rule.json"
    file.write_text('{"sources": ["192.0.2.1"], "priority": 5}')
    assert run("rule", "add", "--file", str(file), "--priority", "7").exit_code == 0
    assert run("rule", "add", "--file", "-", stdin='{"sources": "192.0.2.2"}').exit_code == 0
    bodies = [request.body for request in service.requests]
    assert bodies == [{"sources": ["192.0.2.1"], "priority": 7}, {"sources": "192.0.2.2"}]


@pytest.mark.parametrize("text", ["{", "[]", '{"rules": []}', "1"])
def test_a_file_that_holds_no_rule_is_refused_and_nothing_is_sent(service: FakeService, text: str) -> None:
    result = run("rule", "add", "--file", "-", stdin=text)
    assert result.exit_code == 4
    assert service.requests == []


# rule list, show, delete


WARNING = {"code": "shadowed", "detail": "it never decides: rule 'net' wins", "rule": "net"}


def test_warnings_stand_on_stderr_after_rule_add_and_the_rule_is_added(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, {**RULE, "warnings": [WARNING]})
    result = run("rule", "add", "--source", "203.0.113.0/24")
    assert result.exit_code == 0
    assert result.stderr == "warning: shadowed: it never decides: rule 'net' wins\n"
    assert "warning" not in result.stdout
    assert json.loads(run("rule", "add", "--disabled", "--json").stdout)["warnings"] == [WARNING]


def test_rule_show_names_the_warnings_of_a_rule(service: FakeService) -> None:
    service.answers("GET", "/v1/rules/web-1", 200, {**RULE, "warnings": [WARNING]})
    assert "shadowed: it never decides" in run("rule", "show", "web-1").stdout


def test_counters_are_reset_by_id(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/web-1/reset-counters", 200, RULE)
    assert run("rule", "reset-counters", "web-1").stdout == "reset the counters of web-1\n"
    assert json.loads(run("rule", "reset-counters", "web-1", "--json").stdout) == RULE


def test_resetting_the_counters_of_no_rule_is_exit_code_12(service: FakeService) -> None:
    service.refuses("POST", "/v1/rules/nobody/reset-counters", 404, "rule_not_found")
    assert run("rule", "reset-counters", "nobody").exit_code == 12


def test_the_analysis_is_a_table_and_its_total_a_remark(service: FakeService) -> None:
    found = {"items": [{"id": "host", **WARNING}], "total": 1, "page": 1, "page_size": 1000, "total_pages": 1}
    service.answers("GET", "/v1/analysis", 200, found)
    result = run("analysis")
    assert "host" in result.stdout and "shadowed" in result.stdout and "never decides" in result.stdout
    assert result.stderr == "1 finding\n"
    assert json.loads(run("analysis", "--json").stdout) == found
    assert service.requests[0].query == {"page": ["1"], "page_size": ["1000"]}


def test_unused_rules_are_asked_for(service: FakeService) -> None:
    service.answers("GET", "/v1/rules", 200, page(RULE))
    assert run("rule", "list", "--unused-for", "30d").exit_code == 0
    assert service.requests[0].query["unused_for"] == ["30d"]


def test_rule_list_shows_a_line_a_rule(service: FakeService) -> None:
    service.answers(
        "GET", "/v1/rules", 200, page(RULE, {**RULE, "id": "all", "sources": [], "enabled": False})
    )
    result = run("rule", "list")
    assert result.exit_code == 0
    header, _, first, second = result.stdout.splitlines()
    assert header.split() == ["ID", "ACTION", "PRIO", "DIRECTION", "MATCH", "PACKETS", "NOTE"]
    assert "from 203.0.113.0/24 tcp to port 22, 8000-8100 flags +syn -ack" in first
    assert "1,234" in first
    assert "disabled, scanner" in second
    assert result.stderr == "2 rules\n"


def test_rule_list_passes_its_filters_on(service: FakeService) -> None:
    service.answers("GET", "/v1/rules", 200, page())
    run(
        *("rule", "list", "--direction", "egress", "--action", "allow", "--disabled", "--label", "team=web"),
        *("--address", "192.0.2.1", "--page", "3", "--page-size", "50"),
    )
    assert service.requests[0].query == {
        "direction": ["egress"],
        "action": ["allow"],
        "enabled": ["false"],
        "label": ["team=web"],
        "address": ["192.0.2.1"],
        "page": ["3"],
        "page_size": ["50"],
    }


def test_rule_list_fetches_every_page(service: FakeService) -> None:
    for _ in range(2):
        service.answers("GET", "/v1/rules", 200, page(RULE, number=1, of=2, total=2))
        service.answers("GET", "/v1/rules", 200, page({**RULE, "id": "web-2"}, number=2, of=2, total=2))
    as_table, as_json = run("rule", "list"), run("rule", "list", "--json")
    assert "web-1" in as_table.stdout
    assert "web-2" in as_table.stdout
    document = json.loads(as_json.stdout)
    assert [rule["id"] for rule in document["items"]] == ["web-1", "web-2"]
    assert (document["total"], document["page"], document["total_pages"]) == (2, 1, 1)
    assert [request.query["page"] for request in service.requests] == [["1"], ["2"]] * 2


def test_an_empty_rule_list_is_valid_json(service: FakeService) -> None:
    service.answers("GET", "/v1/rules", 200, page())
    assert json.loads(run("rule", "list", "--json").stdout)["items"] == []


def test_rule_show_prints_every_field(service: FakeService) -> None:
    service.answers("GET", "/v1/rules/web-1", 200, RULE)
    assert json.loads(run("rule", "show", "web-1", "--json").stdout) == RULE
    lines = [line.split(maxsplit=1) for line in run("rule", "show", "web-1").stdout.splitlines()]
    shown = {line[0]: line[1].strip() if len(line) > 1 else "" for line in lines}
    assert shown["priority"] == "1000"
    assert shown["sources"] == "203.0.113.0/24"
    assert shown["destinations"] == "any"
    assert shown["labels"] == "team=web"
    assert shown["tcp_flags"] == "+syn -ack"
    assert shown["packets"] == "1,234"


def test_rule_delete_deletes_one_by_its_path_and_several_in_one_change(service: FakeService) -> None:
    service.answers("DELETE", "/v1/rules/web-1", 204)
    service.answers("POST", "/v1/rules/batch", 200, {"added": 0, "deleted": 2, "unchanged": 0, "ids": []})
    assert run("rule", "delete", "web-1").stdout == "deleted 1\n"
    assert run("rule", "delete", "a", "b", "a").stdout == "deleted 2\n"
    assert service.requests[1].body == {"delete": ["a", "b"]}


def test_rule_delete_says_when_some_were_not_there(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/batch", 200, {"added": 0, "deleted": 1, "unchanged": 0, "ids": []})
    assert run("rule", "delete", "a", "b").exit_code == 12


# interface, status


def test_interface_list_says_why_native_was_not_possible(service: FakeService) -> None:
    gone = {**INTERFACE, "name": "eth8", "present": False, "ifindex": None, "hooks": []}
    service.answers("GET", "/v1/interfaces", 200, {"items": [INTERFACE, gone], "total": 2})
    lines = run("interface", "list").stdout.splitlines()
    assert lines[0].split() == ["INTERFACE", "HOOK", "ATTACHED", "MODE", "PROGRAM", "NOTE"]
    assert lines[2].split() == [
        *("eth7", "ingress", "yes", "generic", "7", "xdp_filter"),
        *("auto", "was", "asked", "for;", "not", "native:", "EOPNOTSUPP"),
    ]
    assert lines[3].split() == ["eth7", "egress", "yes", "7", "xdp_filter"]
    assert "no such interface now" in lines[4]


def test_interface_attach_and_detach(service: FakeService) -> None:
    service.answers("PUT", "/v1/interfaces/eth7", 200, INTERFACE)
    service.answers("DELETE", "/v1/interfaces/eth7", 204)
    attached = run("interface", "attach", "eth7", "--mode", "generic", "--no-egress", "--json")
    assert json.loads(attached.stdout) == INTERFACE
    assert service.requests[0].body == {"mode": "generic", "ingress": True, "egress": False}
    assert run("interface", "detach", "eth7").stdout == "detached eth7\n"


def test_status_shows_readiness_hooks_and_map_fill(service: FakeService) -> None:
    service.answers("GET", "/v1/status", 200, STATUS)
    assert json.loads(run("status", "--json").stdout) == STATUS
    text = run("status").stdout
    assert "no: eth7: ingress is not attached" in text
    assert "1 d 2 h" in text
    assert "12,345 (revision 9)" in text
    assert "50.0 %" in text
    assert "last error" in text


# serve


def test_serve_runs_the_service_with_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def serve(config: Path, start: SlowStart) -> None:
        started.append(config)
        assert "slow start" in [each.name for each in threading.enumerate()], (
            "systemd is asked for time already"
        )

    entry = types.ModuleType("api.__main__")
    entry.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "api.__main__", entry)
    assert run("serve").exit_code == 0
    assert run("serve", "--config", "other.toml").exit_code == 0
    assert run("--config", "third.toml", "serve").exit_code == 0
    assert started == [settings.DEFAULT_PATH, Path("other.toml"), Path("third.toml")]


@pytest.mark.parametrize(("code", "exit_code"), [("invalid_config", 2), ("conflict", 1)])
def test_a_service_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, code: str, exit_code: int
) -> None:
    def refuse(_: Path, start: SlowStart) -> None:
        raise InvalidInput("the config is wrong", "mend it", (Problem("/api/listen", "no"),), code)

    entry = types.ModuleType("api.__main__")
    entry.serve = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "api.__main__", entry)
    result = run("serve")
    assert result.exit_code == exit_code
    assert result.stderr.splitlines() == [
        "error: The service cannot start",
        "  the config is wrong",
        "  /api/listen: no",
        "  hint: mend it",
    ]


# check


def found(*findings: Finding) -> Any:
    def probe(interfaces: Any = None, *, pin_root: Path) -> list[Finding]:
        return [
            finding for finding in findings if interfaces is None or finding.interface in (None, *interfaces)
        ]

    return probe


HOST = Finding("kernel", "ok", "6.1.0")
SLOW = Finding("rx-gro-hw", "warn", "on", "ethtool -K eth7 rx-gro-hw off", "eth7")
TAKEN = Finding("ingress", "fail", "another owner's", "ip link set dev eth8 xdpdrv off", "eth8")
QUIET = Finding("mtu", "ok", "1500", None, "eth7")


def test_check_shows_findings_and_what_mends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.kernel.probe.probe", found(HOST, QUIET, SLOW))
    result = run("check", "--interface", "eth7")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "host",
        "  ok    kernel      6.1.0",
        "",
        "eth7",
        "  ok    mtu         1500",
        "  warn  rx-gro-hw   on",
        "                    $ ethtool -K eth7 rx-gro-hw off",
        "",
        "0 failures, 1 warning",
    ]


def test_check_of_all_interfaces_is_brief_and_fails_when_something_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("firewall.kernel.probe.probe", found(HOST, QUIET, SLOW, TAKEN))
    result = run("check")
    assert result.exit_code == 1
    assert "mtu" not in result.stdout
    assert "1 failure, 1 warning" in result.stdout


def test_check_as_json_has_every_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.kernel.probe.probe", found(HOST, QUIET, TAKEN))
    result = run("check", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["findings"][0] == {
        "name": "kernel",
        "status": "ok",
        "detail": "6.1.0",
        "mend": None,
        "interface": None,
    }
    assert len(document["findings"]) == 3


# exit codes and errors


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (409, "rule_exists", 11),
        (409, "another_conflict", 4),
        (404, "rule_not_found", 12),
        (412, "changed", 4),
        (422, "invalid", 4),
        (507, "map_full", 4),
        (503, "kernel_refused", 1),
        (500, "internal", 1),
    ],
)
def test_an_answer_becomes_its_exit_code(
    service: FakeService, status: int, code: str, exit_code: int
) -> None:
    service.refuses("POST", "/v1/rules", status, code)
    assert run("rule", "add", "--source", "192.0.2.1").exit_code == exit_code


def test_a_problem_goes_to_stderr_with_pointer_and_hint(service: FakeService) -> None:
    errors = [{"pointer": "/sources/0", "detail": "host bits are set"}]
    service.refuses(
        "POST", "/v1/rules", 422, "invalid", detail="1 error", errors=errors, hint="use 10.0.0.0/8"
    )
    result = run("rule", "add", "--source", "10.0.0.1/8")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: Refused",
        "  1 error",
        "  /sources/0: host bits are set",
        "  hint: use 10.0.0.0/8",
    ]


def test_with_json_a_problem_is_json_on_stdout(service: FakeService) -> None:
    service.refuses("GET", "/v1/rules/nix", 404, "rule_not_found", detail="no rule nix")
    result = run("rule", "show", "nix", "--json")
    assert result.exit_code == 12
    assert json.loads(result.stdout)["code"] == "rule_not_found"
    assert result.stderr == ""


def test_an_error_page_of_something_else_is_reported_by_its_status(service: FakeService) -> None:
    service.answers("GET", "/v1/status", 502, b"<html>bad gateway</html>")
    result = run("status")
    assert result.exit_code == 1
    assert "502" in result.stderr


def test_an_answer_that_is_not_json_is_a_failure(service: FakeService) -> None:
    service.answers("GET", "/v1/status", 200, b"hello")
    assert run("status").exit_code == 1


def test_a_service_that_is_not_there_is_exit_code_3() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        result = run("status", "--url", f"http://127.0.0.1:{port}")
        as_json = run("--json", "--url", f"127.0.0.1:{port}", "status")
    assert result.exit_code == as_json.exit_code == 3
    assert f"cannot connect to http://127.0.0.1:{port}" in result.stderr
    assert json.loads(as_json.stdout)["code"] == "service_unreachable"


def test_a_service_that_breaks_off_is_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-m", "cli", "status", "--url", f"http://127.0.0.1:{port}"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = server.accept()
        connection.recv(10)
        connection.close()
        _, error = child.communicate(timeout=30)
    assert child.returncode == 3
    assert "broke off" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["rule", "add"],
        ["rule", "add", "--action", "reject"],
        ["rule", "add", "--priority", "high"],
        ["rule", "add", "--source", "192.0.2.1", "--label", "novalue"],
        ["rule", "add", "--file", "/nonexistent/rule.json"],
        ["rule", "delete"],
        ["rule", "list", "--page", "0"],
        ["interface", "attach", "eth7", "--mode", "fast"],
        ["import", "/nonexistent/list"],
        ["import", "-", "--if-match", "x"],
        ["export", "/nonexistent/directory/rules.json"],
        ["status", "--url", "ftp://host"],
        ["status", "--url", "unix:relative"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(service: FakeService, arguments: list[str]) -> None:
    service.answers("GET", "/v1/ruleset", 200, {"rules": []})
    assert run(*arguments).exit_code == 2


# where the service is, and the options that stand before or after the command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "--url", "URL", "rule", "list"],
        ["rule", "--json", "--url", "URL", "list"],
        ["rule", "list", "--json", "--url", "URL"],
        ["--json", "rule", "--url", "unix:/nonexistent", "list", "--url", "URL"],
    ],
)
def test_shared_options_stand_before_or_after_the_command(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("EBPF_FW_URL", "unix:/nonexistent")
    service.answers("GET", "/v1/rules", 200, page(RULE))
    result = run(*[service.url if argument == "URL" else argument for argument in arguments])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["items"] == [RULE]


def test_a_unix_socket_is_a_service_too(tmp_path: Path) -> None:
    with fake_service(tmp_path / "api.sock") as service:
        service.answers("GET", "/v1/rules", 200, page(RULE))
        assert "web-1" in run("rule", "list", "--url", service.url).stdout
    assert run("rule", "list", "--url", service.url).exit_code == 3


def test_the_config_file_says_where_the_service_listens(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EBPF_FW_URL")
    config = tmp_path / "config.toml"
    config.write_text(f'[api]\nlisten = "{service.url.removeprefix("http://")}"\n')
    service.answers("GET", "/v1/rules", 200, page(RULE))
    assert "web-1" in run("rule", "list", "--config", str(config)).stdout


@pytest.mark.parametrize("content", [None, "[api]\nlisten = 7\n", "[nonsense]\n", "not toml"])
def test_a_config_file_that_cannot_be_used_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    monkeypatch.delenv("EBPF_FW_URL", raising=False)
    config = tmp_path / "config.toml"
    if content is not None:
        config.write_text(content)
    assert run("status", "--config", str(config)).exit_code == 2


def test_the_defaults_are_those_of_the_service() -> None:
    assert session.DEFAULT_CONFIG == settings.DEFAULT_PATH
    assert session.DEFAULT_URL == settings.DEFAULT_LISTEN


def test_a_proxy_in_the_environment_is_not_used(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    service.answers("GET", "/v1/rules", 200, page())
    assert run("rule", "list").exit_code == 0


# what reaches the terminal


def test_texts_of_operators_can_neither_style_nor_steer_the_terminal(service: FakeService) -> None:
    service.answers(
        "GET", "/v1/rules", 200, page({**RULE, "description": "[red]x[/red] \x1b]0;title\x07\nnext"})
    )
    line = run("rule", "list").stdout.splitlines()[2]
    assert r"[red]x[/red] \x1b]0;title\x07\nnext" in line


def test_a_row_stays_one_line_where_the_output_is_no_terminal(service: FakeService) -> None:
    many = {**RULE, "sources": [f"2001:db8:{n:x}::/48" for n in range(100)], "description": "d" * 300}
    service.answers("GET", "/v1/rules", 200, page(many))
    lines = run("rule", "list").stdout.splitlines()
    assert len(lines) == 3
    assert "and 96 more" in lines[2]


def test_version_is_printed() -> None:
    assert run("--version").stdout.startswith("ebpf-fw ")


def test_a_reader_that_goes_away_ends_the_output_quietly(service: FakeService) -> None:
    rules = [{**RULE, "id": f"r{n}", "description": "d" * 200} for n in range(1000)]
    service.answers("GET", "/v1/rules", 200, page(*rules))
    # CPython's unbuffered stdout takes a write that was cut short for a whole one: there is no error to show.
    environment = {**os.environ, "EBPF_FW_URL": service.url, "PYTHONUNBUFFERED": ""}
    for more in ([], ["--json"]):
        child = subprocess.Popen(
            [sys.executable, "-m", "cli", "rule", "list", *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=30) == 141


def test_ctrl_c_is_exit_code_130_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = subprocess.Popen(
            [sys.executable, "-m", "cli", "status", "--url", f"http://127.0.0.1:{server.getsockname()[1]}"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = server.accept()
        connection.recv(10)
        child.send_signal(2)
        _, error = child.communicate(timeout=30)
        connection.close()
    assert child.returncode == 130
    assert "Traceback" not in error
