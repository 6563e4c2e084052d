"""Import and export of the command line: address lists, rule sets, chunks, files that are whole or absent."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import address_list, import_list, import_rules
from cli.__main__ import app
from cli.client import Client
from tests.unit.fake_service import FakeService, fake_service

DONE = {"added": 2, "deleted": 0, "unchanged": 1, "ids": ["a", "b"]}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        yield running


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin, prog_name="ebpf-fw")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# address lists


def test_a_list_is_read_with_comments_empty_lines_and_duplicates() -> None:
    text = """\
# a blocklist
; of two styles

192.0.2.1
192.0.2.1/32   # again, as a CIDR
203.0.113.0/24 ; SBL123
2001:DB8:0::1
2001:db8::1/128
2001:db8:1::/48\t
"""
    listed = address_list.parse(text.splitlines())
    assert listed.addresses == ("192.0.2.1", "203.0.113.0/24", "2001:db8::1", "2001:db8:1::/48")
    assert listed.duplicates == 2
    assert listed.bad == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10.0.0.1/8", "10.0.0.1/8: host bits are set; the network is 10.0.0.0/8"),
        ("2001:db8::1/64", "2001:db8::1/64: host bits are set; the network is 2001:db8::/64"),
        ("example.org", "example.org: not an address or CIDR"),
        ("192.0.2.256", "192.0.2.256: not an address or CIDR"),
        ("192.0.2.1 192.0.2.2", "192.0.2.1 192.0.2.2: not an address or CIDR"),
        ("192.0.2.0/33", "192.0.2.0/33: not an address or CIDR"),
        ("010.0.0.1", "010.0.0.1: not an address or CIDR"),
        ("fe80::1%eth0", "fe80::1%eth0: an address in a rule has no zone"),
        ("fe80::%1/64", "fe80::%1/64: an address in a rule has no zone"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0: not an address or CIDR"),
        ("192.0.2.\x001", "192.0.2.\x001: not an address or CIDR"),
    ],
)
def test_a_bad_line_is_named_with_its_number(text: str, complaint: str) -> None:
    assert address_list.parse(["192.0.2.1", "", text]).bad == ((3, complaint),)


def test_ids_come_from_the_addresses_and_fit_the_contract() -> None:
    longest = "2001:db8:ffff:ffff:ffff:ffff:ffff:fff0/124"
    made = list(
        address_list.rules(
            ["192.0.2.0/24", longest],
            action="drop",
            priority=5,
            direction="both",
            prefix="p" * address_list.PREFIX_LIMIT,
        )
    )
    assert [(rule["direction"], rule.get("sources"), rule.get("destinations")) for rule in made[:2]] == [
        ("ingress", ["192.0.2.0/24"], None),
        ("egress", None, ["192.0.2.0/24"]),
    ]
    assert made[0]["id"].endswith(":in:192.0.2.0-24")
    assert len({rule["id"] for rule in made}) == 4
    assert max(len(rule["id"]) for rule in made) <= 64


# import


ADDED = {"added": 2, "unchanged": 1}


def test_an_address_list_goes_to_the_service_as_it_is(service: FakeService, tmp_path: Path) -> None:
    service.answers("POST", "/v1/rules/import", 200, ADDED)
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf192.0.2.1\r\n2001:db8::/32\r\n192.0.2.1 # again\r\n")
    result = run("import", str(file))
    assert result.exit_code == 0
    assert result.stdout == "added 2, deleted 0, unchanged 1\n"
    (request,) = service.requests
    assert request.body == "\ufeff192.0.2.1\r\n2001:db8::/32\r\n192.0.2.1 # again\r\n"
    assert request.query == {"action": ["drop"], "priority": ["1000"], "direction": ["ingress"]}
    assert request.headers["Content-Length"] == str(file.stat().st_size)


def test_the_options_of_a_list_go_with_it(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/import", 200, ADDED)
    options = ("--action", "allow", "--priority", "5", "--direction", "egress", "--json")
    result = run("import", "-", *options, stdin="192.0.2.1\n")
    assert json.loads(result.stdout) == {"added": 2, "deleted": 0, "unchanged": 1}
    assert service.requests[0].query == {"action": ["allow"], "priority": ["5"], "direction": ["egress"]}


def test_a_list_longer_than_one_part_arrives_whole(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_list, "CHUNK_BYTES", 7)
    service.answers("POST", "/v1/rules/import", 200, ADDED)
    text = "\n".join(f"192.0.2.{n}" for n in range(100))
    assert run("import", "-", stdin=text).exit_code == 0
    assert service.requests[0].body == text


@pytest.mark.parametrize(
    ("parts", "told"), [(1, "nothing of - was imported"), (100, "the service imports all of it or nothing")]
)
def test_ctrl_c_tells_what_becomes_of_the_list(
    monkeypatch: pytest.MonkeyPatch, parts: int, told: str
) -> None:
    def upload(_: Client, path: str, content: Iterable[bytes], *__: object) -> None:
        sent = list(islice(content, parts))
        assert path == "/v1/rules/import" and sent
        raise KeyboardInterrupt

    monkeypatch.setattr(import_list, "CHUNK_BYTES", 7)
    monkeypatch.setattr(Client, "upload", upload)
    result = run("import", "-", stdin="192.0.2.1\n192.0.2.2\n")
    assert result.exit_code == 130 and told in result.stderr and not result.stdout


def test_nothing_but_the_answer_is_written_where_no_terminal_is(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/import", 200, ADDED)
    result = run("import", "-", "--json", stdin="192.0.2.1\n")
    assert json.loads(result.stdout) and not result.stderr


def test_lines_that_the_service_refuses_are_named_once(service: FakeService) -> None:
    errors = [
        {"pointer": "/line/2", "detail": "'10.0.0.1/8' has host bits set"},
        {"pointer": "/line/3", "detail": "'nonsense' is no address"},
    ]
    detail = "line 2: '10.0.0.1/8' has host bits set (and 1 more)"
    service.refuses("POST", "/v1/rules/import", 422, "invalid_list", detail=detail, errors=errors)
    result = run("import", "-", stdin="192.0.2.1\n10.0.0.1/8\nnonsense\n")
    assert result.exit_code == 4
    assert result.stderr.count("line 2") == 1
    assert "line 2: '10.0.0.1/8' has host bits set" in result.stderr
    assert "line 3: 'nonsense' is no address" in result.stderr
    as_json = json.loads(run("import", "-", "--json", stdin="nonsense\n").stdout)
    assert [each["pointer"] for each in as_json["errors"]] == ["line 2", "line 3"]


def test_rules_a_line_are_a_rule_set(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    assert run("import", "-", stdin='{"id": "a"}\n\n{"id": "b"}\n').exit_code == 0
    assert service.requests[0].body == {"add": [{"id": "a"}, {"id": "b"}]}


def test_the_options_shape_the_rules_of_a_list(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    options = ("--action", "allow", "--priority", "5", "--direction", "egress", "--id-prefix", "mine")
    assert run("import", "-", *options, "--json", stdin="192.0.2.1\n").exit_code == 0
    assert service.requests[0].body["add"] == [
        {
            "id": "mine:out:192.0.2.1",
            "action": "allow",
            "priority": 5,
            "direction": "egress",
            "destinations": ["192.0.2.1"],
        }
    ]


def test_bad_lines_are_reported_before_anything_is_sent(service: FakeService) -> None:
    result = run("import", "-", "--id-prefix", "feed", stdin="192.0.2.1\n10.0.0.1/8\nnonsense\n")
    assert result.exit_code == 4
    assert service.requests == []
    assert "line 2: 10.0.0.1/8: host bits are set; the network is 10.0.0.0/8" in result.stderr
    assert "line 3: nonsense: not an address or CIDR" in result.stderr
    as_json = run("import", "-", "--id-prefix", "feed", "--json", stdin="nonsense\n")
    assert json.loads(as_json.stdout)["errors"] == [
        {"pointer": "line 1", "detail": "nonsense: not an address or CIDR"}
    ]


def test_a_long_list_goes_out_in_chunks(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_rules, "CHUNK", 2)
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    result = run(
        "import", "-", "--id-prefix", "feed", "--json", stdin="\n".join(f"192.0.2.{n}" for n in range(5))
    )
    assert [len(request.body["add"]) for request in service.requests] == [2, 2, 1]
    assert json.loads(result.stdout) == {"added": 6, "deleted": 0, "unchanged": 3}


def test_a_chunk_that_is_refused_tells_what_is_in(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_rules, "CHUNK", 2)
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    errors = [{"pointer": "/add/1/priority", "detail": "too high"}, {"pointer": "", "detail": "no"}]
    service.refuses("POST", "/v1/rules/batch", 507, "table_full", detail="addresses is full.", errors=errors)
    result = run("import", "-", "--id-prefix", "feed", stdin="\n".join(f"192.0.2.{n}" for n in range(5)))
    assert result.exit_code == 4
    assert "addresses is full. 2 of 5 rules were added before this." in result.stderr
    assert "/add/3/priority: too high" in result.stderr


@pytest.mark.parametrize("form", ['{"rules": [{"id": "a"}, {"id": "b"}]}', '\n[{"id": "a"}, {"id": "b"}]'])
def test_a_json_rule_set_is_added(service: FakeService, form: str) -> None:
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    assert run("import", "-", stdin=form).exit_code == 0
    assert service.requests[0].body == {"add": [{"id": "a"}, {"id": "b"}]}


@pytest.mark.parametrize("text", ['{"rules"', '{"items": []}', '{"rules": {}}', b"\xff\xfe1"])
def test_a_file_that_is_neither_is_refused(service: FakeService, text: str | bytes) -> None:
    assert run("import", "-", stdin=text).exit_code == 4
    assert service.requests == []


@pytest.mark.parametrize(("given", "sent"), [(None, None), ('"r9"', '"r9"'), ("r9", '"r9"'), ("*", "*")])
def test_replace_puts_the_whole_rule_set(service: FakeService, given: str | None, sent: str | None) -> None:
    answer = {"rules": 1, "added": 1, "deleted": 4, "unchanged": 0}
    service.answers("PUT", "/v1/ruleset", 200, answer)
    condition = [] if given is None else ["--if-match", given]
    result = run("import", "-", "--replace", *condition, "--json", stdin='{"rules": [{"id": "a"}]}')
    assert json.loads(result.stdout) == answer
    assert service.requests[0].body == {"rules": [{"id": "a"}]}
    assert service.requests[0].headers.get("If-Match") == sent


def test_a_rule_set_that_changed_is_not_replaced(service: FakeService) -> None:
    service.refuses("PUT", "/v1/ruleset", 412, "ruleset_changed")
    assert run("import", "-", "--replace", "--if-match", "old", stdin='{"rules": []}').exit_code == 4


def test_an_empty_list_adds_nothing_and_never_deletes_every_rule(service: FakeService) -> None:
    assert run("import", "-", stdin="# the feed failed\n").stdout == "added 0, deleted 0, unchanged 0\n"
    assert run("import", "-", "--replace", stdin="# the feed failed\n").exit_code == 4
    assert service.requests == []
    service.answers("PUT", "/v1/ruleset", 200, {"rules": 0, "added": 0, "deleted": 9, "unchanged": 0})
    assert run("import", "-", "--replace", stdin='{"rules": []}').exit_code == 0


def test_a_list_for_both_directions_makes_two_rules_an_address(service: FakeService) -> None:
    service.answers("POST", "/v1/rules/batch", 200, DONE)
    run("import", "-", "--direction", "both", stdin="192.0.2.1")
    sent = service.requests[0].body["add"]
    assert [(rule["id"], rule["direction"]) for rule in sent] == [
        ("import:in:192.0.2.1", "ingress"),
        ("import:out:192.0.2.1", "egress"),
    ]


# export

RULESET = {"rules": [{"id": "a"}]}


def test_export_writes_what_import_reads(service: FakeService, tmp_path: Path) -> None:
    service.answers("GET", "/v1/ruleset", 200, RULESET, ETag='"r9"')
    file = tmp_path / "rules.json"
    assert run("export", str(file)).stdout == f'wrote {file}, ETag "r9"\n'
    assert json.loads(file.read_text()) == RULESET
    assert [path.name for path in tmp_path.iterdir()] == ["rules.json"]
    assert json.loads(run("export").stdout) == json.loads(run("export", "-").stdout) == RULESET
    assert json.loads(run("export", str(file), "--json").stdout) == {"file": str(file), "etag": '"r9"'}


def test_a_failed_export_leaves_the_old_file(service: FakeService, tmp_path: Path) -> None:
    service.answers("GET", "/v1/ruleset", 200, b'{"rules": [', **{"Content-Length": "1000"})
    file = tmp_path / "rules.json"
    file.write_text("old")
    assert run("export", str(file)).exit_code == 3
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rules.json"]


def test_an_exported_file_has_the_mode_of_any_new_file(service: FakeService, tmp_path: Path) -> None:
    service.answers("GET", "/v1/ruleset", 200, RULESET)
    plain = tmp_path / "plain"
    plain.touch()
    file = tmp_path / "rules.json"
    run("export", str(file))
    assert file.stat().st_mode == plain.stat().st_mode
    file.chmod(0o640)
    run("export", str(file))
    assert file.stat().st_mode & 0o777 == 0o640
