"""Broken imports by the thousand: the service never fails, takes all or nothing, and holds what an independent reading
of the same bytes says.

IMPORT_FUZZ_SECONDS: how long each test goes on; FUZZ_SEED: other inputs.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range
from typing import Any

import pytest

from cli import address_list
from tests import oracle
from tests.api.client import ApiClient
from tests.random_rules import random_frame, random_rules

SECONDS = float(os.environ.get("IMPORT_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
PROBLEMS_TOLD = 100
Network = IPv4Network | IPv6Network
Rule = dict[str, Any]


@pytest.fixture
def settings() -> dict[str, object]:
    return {"bpf": {"max_addresses": 5000, "max_rules": 64}}


def seeds(share: float = 1) -> Iterator[tuple[int, random.Random]]:
    """Numbers to name a failure by, and a source of randomness for each; at least one, then until time is up."""
    started = time.monotonic()
    for number in itertools.count(SEED * 1_000_003):
        yield number, random.Random(number)
        if time.monotonic() - started > SECONDS * share:
            return


# --- lists of addresses ------------------------------------------------------------------------------------

GOOD = (
    "203.0.113.7", "198.51.100.0/24", "0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "2001:db8::1", "2001:db8::/32",
    "::/0", "::1/128", "2001:DB8:0:0::7", "::ffff:192.0.2.1", "10.0.0.0/08", "1.2.3.4/032",
)  # fmt: skip
BAD = (
    "203.0.113.256", "203.0.113", "203.0.113.7.8", "010.0.0.1", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1",
    "10.0.0.0/", "/8", "/", "10.0.0.0/8/8", "10.0.0.0/+8", "10.0.0.0/8.0", "10.0.0.0/٨", "١.2.3.4", "1.2.3.4/0032",
    "fe80::1%eth0", "fe80::%1/64", "2001:db8::1/32", "::/129", ":::", "1::2::3", "example.org", "0x7f.1", "127.1", "1",
    "1.2.3.4,5.6.7.8", "203.0.113.7 198.51.100.0/24", "::1 ::2", "1.2.3.4-1.2.3.9", "null", "\0", "1.2.3.4\0", "²",
    "\ufeff1.2.3.4", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255",
    "10.0.0.0 /8", "10.0.0.0/ 8", "-", "{", "[]", "\u20281.2.3.4", "1.2.3.4\x0b5.6.7.8",
)  # fmt: skip
SPACE = ("", "", "", " ", "\t", "  ", "\u00a0")
COMMENTS = ("", "", "", "", "# feed", ";x", "#", " # 1.2.3.4", "; 5.6.7.8 ; # 9.9.9.9", "#é\u2028 1.2.3.4")
ENDS = ("\n", "\n", "\n", "\r\n", "\r", "\n\n")


def random_line(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.1:
        text = ""
    elif draw < 0.5:
        text = rng.choice(GOOD)
    elif draw < 0.9:
        text = random_prefix(rng)
    elif draw < 0.95:
        text = rng.choice(BAD)
    else:
        text = damaged(rng, rng.choice(GOOD))
    return rng.choice(SPACE) + text + rng.choice(SPACE) + rng.choice(COMMENTS)


def random_prefix(rng: random.Random) -> str:
    version = rng.choice((4, 6))
    bits = 32 if version == 4 else 128
    kind = IPv4Network if version == 4 else IPv6Network
    network = kind((rng.getrandbits(bits), rng.choice((0, 8, 16, 24, 32, bits, bits))), strict=False)
    return str(network.network_address) if network.prefixlen == bits and rng.random() < 0.7 else str(network)


def damaged(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    return (
        text[:at]
        + rng.choice(("", ".", ":", "/", "0", "f", "%", " ", "٣", "-", "\t", "\x1c"))
        + text[at + 1 :]
    )


def read_line(line: str) -> Network | None:
    """What a line names, None where nothing. Raises ValueError: neither address nor CIDR."""
    text = re.split("[#;]", line, maxsplit=1)[0].strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?", text):
        raise ValueError(text)
    return ip_network(text)


def read_list(text: str) -> tuple[list[Network], list[int]]:
    """The prefixes in order, and the numbers of bad lines."""
    found, bad = [], []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        try:
            network = read_line(line)
        except ValueError:
            bad.append(number)
            continue
        found += [network] if network is not None else []
    return found, bad


def rules_of(api: ApiClient) -> list[Rule]:
    """Once those are gone that had expired when they came."""
    deadline = time.monotonic() + 10
    while True:
        rules: list[Rule] = api("GET", "/v1/ruleset").json()["rules"]
        if not any(str(rule["expires_at"]).startswith("2020-") for rule in rules):
            return rules
        assert time.monotonic() < deadline, rules
        time.sleep(0.01)


def networks_of(rules: list[Rule]) -> list[str]:
    return sorted(str(ip_network(each)) for rule in rules for each in rule["sources"])


def test_a_list_is_taken_whole_or_refused_with_every_bad_line_named(api: ApiClient) -> None:
    for number, rng in seeds():
        text = "".join(random_line(rng) + rng.choice(ENDS) for _ in range(rng.choice((1, 3, 10, 40))))
        body = text.encode()
        where = f"seed {number}: {text!r}"
        if rng.random() < 0.1:
            cut = rng.randrange(len(body))
            body = body[:cut] + bytes([rng.choice((0xFF, 0xC3, 0x80))]) + body[cut:]
        api("PUT", "/v1/ruleset", {"rules": []})
        api("POST", "/v1/rules", {"id": "there", "protocols": ["gre"]})
        answer = api("POST", "/v1/rules/import", content=body, headers={"Content-Type": "text/plain"})
        try:
            expected, bad = read_list(body.decode("utf-8-sig"))
        except UnicodeDecodeError:
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_list"), where
            continue
        rules = rules_of(api)
        if bad:
            assert answer.status_code == 422, where
            named = [int(each["pointer"].removeprefix("/line/")) for each in answer.json()["errors"]]
            assert named == bad[:PROBLEMS_TOLD], where
            assert [rule["id"] for rule in rules] == ["there"], where
        else:
            assert answer.status_code == 200, f"{where}\n{answer.text}"
            assert answer.json()["added"] == len(set(expected)), where
            assert networks_of(rules) == sorted(map(str, set(expected))), where


def test_the_command_line_reads_the_same_lists_in_the_same_way() -> None:
    for number, rng in seeds():
        lines = [random_line(rng) for _ in range(50)]
        expected, bad = read_list("\n".join(lines))
        found = address_list.parse(lines)
        where = f"seed {number}: {lines!r}"
        assert [line for line, _ in found.bad] == bad, where
        assert [ip_network(each) for each in found.addresses] == list(dict.fromkeys(expected)), where


# --- rules as JSON -----------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e300, 256, 65536, 2**31, 2**63, 2**64 - 1, "", " ", "any", "0", "-1", "80-", "-80",
    "90-80", "8000-8100", " 80", "80 ", "٣", "1e3", "0x50", "3/256", "3/", "256/0", "tcp", "TCP", "Tcp", "icmp",
    "nul\0l",
    "10.0.0.1/8", "10.0.0.0/8", "::/0", "fe80::1%1", "eth0", "eth*", "[", "drop", "ALLOW", "both", "1h", "1y", "-5s",
    "0s", "2020-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "\ud800", "a" * 65, "x" * 2000, [], [[]], [None], [""], [80],
    ["80", "80"], ["10.0.0.0/8", "::/0"], ["0.0.0.0/0"] * 3, {}, {"set": []}, {"set": ["syn"]}, {"unset": "ack"},
    {"set": ["syn"], "unset": ["syn"]}, {"set": None}, {"a": "b"}, {"": ""}, {"set": ["syn"], "more": 1},
)  # fmt: skip
FIELDS = (
    "id", "description", "enabled", "action", "priority", "direction", "interfaces", "family", "sources",
    "destinations", "protocols", "source_ports", "destination_ports", "icmp_types", "tcp_flags", "labels", "ttl",
    "expires_at", "created_at", "updated_at", "stats", "source", "Sources", "",
)  # fmt: skip


def mutate_rules(rng: random.Random, rules: list[Rule]) -> list[Any]:
    mutated: list[Any] = copy.deepcopy(rules)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        kind = rng.randrange(6)
        if kind == 0 or not mutated:
            mutated.append(copy.deepcopy(rng.choice(ODD)))
            continue
        at = rng.randrange(len(mutated))
        rule = mutated[at]
        if not isinstance(rule, dict) or kind == 1:
            mutated.insert(at, copy.deepcopy(rule))
        elif kind == 2 and rule:
            rule.pop(rng.choice(list(rule)))
        elif kind == 3 and (
            lists := [field for field, value in rule.items() if isinstance(value, list) and value]
        ):
            elements = rule[rng.choice(lists)]
            elements[rng.randrange(len(elements))] = copy.deepcopy(rng.choice(ODD))
        else:
            rule[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(ODD))
    return mutated


def damaged_json(rng: random.Random, body: bytes) -> bytes:
    """Bytes changed, cut or repeated, and what JSON parsers are known to fall over."""
    draw, at = rng.random(), rng.randrange(len(body))
    if draw < 0.3:
        return body[:at]
    if draw < 0.6:
        return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
    if draw < 0.8:
        return body[:at] + body[max(0, at - 20) :]
    return rng.choice(
        (b"", b"[" * 5000, b'{"rules":' * 3000, b"NaN", b'{"rules":[{"priority":1e999}]}', b"\xff\xfe{\0}\0", b"null",
         b'{"rules":[],"rules":[{}]}', b'{"rules":{}}', b'{"rules":[{"id":"a","id":"b"}]}', b'"rules"', b"[]",
         b'{"rules":[{"priority":-0}]}', b'{"rules":[{"priority":1.0}]}', b'{"rules":[{"labels":{"a":1}}]}')
    )  # fmt: skip


def same_meaning(rng: random.Random, asked: list[Rule], kept: list[Rule]) -> str | None:
    """A frame that the rules as they were sent and as they are kept judge differently."""
    for _ in range(12):
        frame, direction = random_frame(rng), rng.choice(("ingress", "egress"))
        verdicts = []
        for rules in (asked, kept):
            # null means the default, as if the field were not there
            known = [{field: value for field, value in rule.items() if value is not None} for rule in rules]
            found = oracle.judge(known, frame, direction=direction, interface="eth0")
            verdicts.append((found.verdict, found.reason))
        if verdicts[0] != verdicts[1]:
            return f"{direction} {frame.hex()}: sent {verdicts[0]}, kept {verdicts[1]}"
    return None


@pytest.mark.parametrize("way", ["ruleset", "batch"])
def test_json_rules_are_taken_whole_or_refused_and_keep_their_meaning(api: ApiClient, way: str) -> None:
    taken = refused = 0
    for number, rng in seeds():
        rules = mutate_rules(rng, random_rules(rng, rng.randint(0, 5)))
        body = json.dumps({"rules": rules} if way == "ruleset" else {"add": rules}).encode()
        is_damaged = rng.random() < 0.25
        if is_damaged:
            body = damaged_json(rng, body)
        api("PUT", "/v1/ruleset", {"rules": [{"id": "there", "protocols": ["gre"], "direction": "egress"}]})
        before = rules_of(api)
        method, path = ("PUT", "/v1/ruleset") if way == "ruleset" else ("POST", "/v1/rules/batch")
        answer = api(method, path, content=body, headers={"Content-Type": "application/json"})
        after = rules_of(api)
        where = f"seed {number}: {body!r}\n{answer.status_code} {answer.text}"
        assert answer.status_code in (200, 409, 422, 507), where
        if answer.status_code != 200:
            refused += 1
            assert after == before, where
            assert answer.json()["code"] not in ("internal", "error"), where
            continue
        taken += 1
        assert api("PUT", "/v1/ruleset", {"rules": after}).json()["added"] == 0, where
        if not is_damaged:
            asked = (before if way == "batch" else []) + rules
            living = [
                rule for rule in asked if rule.get("expires_at") != "2020-01-01T00:00:00Z" or rule.get("ttl")
            ]
            assert len(after) == len(living), where
            assert (wrong := same_meaning(rng, living, after)) is None, f"{where}\n{wrong}"
    assert taken > 5 and refused > 5


# --- lists into sets ---------------------------------------------------------------------------------------


def range_of(text: str) -> list[Network] | None:
    """`first-last` as the standard library splits it; None where it is no range."""
    first, dash, last = text.partition("-")
    try:
        ends = ip_address(first.strip()), ip_address(last.strip())
        return list(summarize_address_range(*ends)) if dash and "%" not in text else None
    except (ValueError, TypeError):
        return None


def read_for_a_set(line: str) -> list[Network]:
    """As read_line(), and ranges and host bits are no faults. Raises ValueError."""
    text = re.split("[#;]", line, maxsplit=1)[0].strip()
    if not text:
        return []
    if (found := range_of(text)) is not None:
        return found
    if not re.fullmatch(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?", text):
        raise ValueError(text)
    return [ip_network(text, strict=False)]


def text_of(lines: list[str]) -> list[str]:
    """Without what some editors put before the first one."""
    return [lines[0].removeprefix("\ufeff"), *lines[1:]]


def entry_texts(api: ApiClient) -> list[str]:
    page = api("GET", "/v1/sets/fuzzed/entries?page_size=1000").json()
    assert page["total_pages"] <= 1
    return sorted(str(ip_network(each["address"])) for each in page["items"])


def wrapped(rng: random.Random, texts: list[str]) -> tuple[str, str]:
    """The same entries in another format, and its name."""
    form = rng.choice(("ndjson", "csv", "ipset", "nft"))
    if form == "ndjson":
        return "".join(
            json.dumps({rng.choice(("ip", "cidr", "address")): each}) + "\n" for each in texts
        ), form
    if form == "csv":
        return "n,ip\n" + "".join(f"{rng.randrange(9)},{each}\n" for each in texts), form
    if form == "ipset":
        return "".join(f"add {'s6' if ':' in each else 's4'} {each}\n" for each in texts), form
    return json.dumps({"nftables": [{"metainfo": {}}, {"set": {"elem": texts}}]}), form


def test_a_list_for_a_set_gives_what_an_independent_reading_gives(api: ApiClient) -> None:
    api("PUT", "/v1/sets/fuzzed")
    for number, rng in seeds(0.5):
        lines = [random_line(rng) for _ in range(rng.choice((1, 3, 10, 40)))]
        if rng.random() < 0.3:
            a, b = sorted(rng.getrandbits(32) for _ in range(2))
            lines.append(f"{IPv4Address(a)}-{IPv4Address(b)}")
        text = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines)
        where = f"seed {number}: {text!r}"
        expected: list[Network] = []
        bad = []
        for line, content in enumerate(text_of(lines), 1):
            try:
                expected += read_for_a_set(content)
            except ValueError:
                bad.append(line)
        query = {"mode": "replace", "format": "plain", "allow_empty": "true"}
        answer = api("POST", "/v1/sets/fuzzed/import", content=text.encode(), params=query)
        if bad and not expected:
            assert (answer.status_code, answer.json().get("code")) == (422, "invalid_list"), where
            continue
        if "\0" in text:
            assert answer.status_code == 422, where
            continue
        assert answer.status_code == 200, f"{where}\n{answer.text}"
        found = answer.json()
        assert [each["pointer"] for each in found["errors"]] == [f"/line/{each}" for each in bad], where
        assert entry_texts(api) == sorted({str(each) for each in expected}), where
        # The same in another format, and what the export says.
        texts = [str(each) for each in expected]
        other, form = wrapped(rng, texts)
        again = api(
            "POST",
            f"/v1/sets/fuzzed/import?mode=replace&allow_empty=true&format={form}",
            content=other.encode(),
        )
        assert (again.status_code, again.json()["added"], again.json()["bad"]) == (200, 0, 0), (
            f"{where}\n{form}"
        )
        for written in ("plain", "ndjson"):
            exported = api("GET", f"/v1/sets/fuzzed/export?format={written}").text
            query = {"mode": "replace", "format": written, "allow_empty": "true"}
            same = api("POST", "/v1/sets/fuzzed/import", content=exported.encode(), params=query).json()
            assert (same["added"], same["removed"], same["bad"]) == (0, 0, 0), where


def test_damaged_lists_of_every_format_are_taken_or_refused_and_never_fail(api: ApiClient) -> None:
    api("PUT", "/v1/sets/fuzzed")
    answered = set()
    for number, rng in seeds(0.5):
        texts = [random_prefix(rng) for _ in range(rng.choice((1, 5, 30)))]
        text, form = wrapped(rng, texts)
        body = bytearray(text.encode())
        for _ in range(rng.choice((0, 1, 1, 3))):
            at = rng.randrange(len(body))
            if rng.random() < 0.3:
                del body[at:]
                body += b" "
            else:
                body[at] = rng.choice((*b'{}[]",:\\\n\r -/.#;0a', rng.randrange(256)))
        query = {"mode": rng.choice(("add", "replace", "delete")), "strict": rng.choice(("true", "false"))}
        if rng.random() < 0.5:
            query["format"] = form
        answer = api("POST", "/v1/sets/fuzzed/import", content=bytes(body), params=query)
        where = f"seed {number}: {query} {bytes(body)!r}\n{answer.status_code} {answer.text}"
        assert answer.status_code in (200, 422, 507), where
        answered.add(answer.status_code)
        if answer.status_code == 200:
            assert answer.json()["bad"] == 0 or query["strict"] == "false", where
        if rng.random() < 0.1:
            api("PUT", "/v1/sets/fuzzed/entries", {"entries": []})
    assert {200, 422} <= answered
