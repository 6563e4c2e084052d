"""A list of addresses through the API."""

from __future__ import annotations

import random

import httpx
import pytest

from api.rule_lines import RuleLines
from firewall.datapath import Entry, Key
from firewall.enforcer import Enforcer
from firewall.errors import InvalidInput
from firewall.rule import rank_of
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel

LIST = "# a comment\n203.0.113.7\n\n198.51.100.0/24 ; another\n2001:db8::/32\n2001:db8::1\n203.0.113.7\n"


def post(api: ApiClient, text: str, **query: object) -> httpx.Response:
    return api("POST", "/v1/rules/import", content=text, headers={"Content-Type": "text/plain"}, params=query)


def ids(api: ApiClient, address: str) -> list[str]:
    return [rule["id"] for rule in api("GET", f"/v1/rules?address={address}").json()["items"]]


def test_each_address_of_a_list_becomes_a_rule(api: ApiClient, kernel: MemoryKernel) -> None:
    assert post(api, LIST).json() == {"added": 4, "unchanged": 1}
    assert {(key.version, key.length) for key in kernel.entries} == {(4, 32), (4, 24), (6, 32), (6, 128)}
    (rule_id,) = ids(api, "198.51.100.9")
    rule = api("GET", f"/v1/rules/{rule_id}").json()
    assert (rule["action"], rule["sources"], rule["destinations"]) == ("drop", ["198.51.100.0/24"], [])
    assert api("GET", "/v1/rules").json()["total"] == 4


def test_the_same_list_again_changes_nothing(api: ApiClient, kernel: MemoryKernel) -> None:
    post(api, LIST)
    applied = kernel.applied
    assert post(api, LIST).json() == {"added": 0, "unchanged": 5}
    assert kernel.applied == applied and api("GET", "/v1/rules").json()["total"] == 4


def test_the_same_list_again_changes_nothing_below_a_better_rule(api: ApiClient) -> None:
    api("POST", "/v1/rules", {"id": "friend", "sources": ["203.0.113.7"], "action": "allow", "priority": 5})
    assert post(api, LIST).json()["added"] == 4
    assert post(api, LIST).json()["added"] == 0
    assert len(ids(api, "203.0.113.7")) == 2


def test_the_query_says_what_the_rules_do(api: ApiClient, kernel: MemoryKernel) -> None:
    post(api, "203.0.113.7\n", action="allow", priority=7, direction="egress")
    assert kernel.entries == {Key(4, 3, 32, 0xCB007107): Entry(rank_of(7, "allow"), 1)}


def test_a_bad_line_is_named_and_nothing_is_imported(api: ApiClient, kernel: MemoryKernel) -> None:
    response = post(api, "203.0.113.7\n# fine\n10.0.0.1/8\nnonsense\n1.2.3.4/33\n1.2.3.4/x\n")
    assert response.status_code == 422 and response.json()["code"] == "invalid_list"
    assert pointers(response) == ["/line/3", "/line/4", "/line/5", "/line/6"]
    assert "10.0.0.0/8" in response.json()["detail"] and not kernel.entries


def test_an_empty_list_is_a_list_and_no_list_is_an_error(api: ApiClient) -> None:
    empty = api("POST", "/v1/rules/import", content=b"", headers={"Content-Type": "text/plain"})
    assert (empty.status_code, empty.json()["added"]) == (200, 0)
    none = api("POST", "/v1/rules/import")
    assert (none.status_code, none.json()["code"]) == (422, "invalid_list")
    assert "text/plain" in none.json()["hint"]


def test_a_comment_ends_with_its_line_whatever_ends_that(api: ApiClient) -> None:
    for number, end in enumerate(("\n", "\r\n", "\r")):
        lines = [f"203.0.113.{number} # one", "# nothing", f"198.51.100.{number} ; another", ""]
        assert post(api, end.join(lines)).json() == {"added": 2, "unchanged": 0}
    assert pointers(post(api, "203.0.113.7 # fine\r10.0.0.1/8\r")) == ["/line/2"]


def test_a_line_is_one_address_in_plain_digits(api: ApiClient, kernel: MemoryKernel) -> None:
    response = post(api, "203.0.113.7 198.51.100.7\n10.0.0.0/\u0668\n10.0.0.0/255.0.0.0\n")
    assert pointers(response) == ["/line/1", "/line/2", "/line/3"] and not kernel.entries


def test_a_refusal_of_the_kernel_leaves_nothing_behind(api: ApiClient, kernel: MemoryKernel) -> None:
    kernel.fail_next = 12
    assert post(api, LIST).status_code == 503
    assert not kernel.entries and api("GET", "/v1/rules").json()["total"] == 0
    assert post(api, LIST).json()["added"] == 4


def test_imported_rules_are_rules_like_others(api: ApiClient, kernel: MemoryKernel) -> None:
    post(api, "".join(f"10.0.{n}.1\n" for n in range(20)))
    first, second, third = (ids(api, f"10.0.{n}.1")[0] for n in (0, 1, 2))
    assert api("DELETE", f"/v1/rules/{first}").status_code == 204
    assert api("GET", f"/v1/rules/{first}").status_code == 404
    assert api("PATCH", f"/v1/rules/{second}", {"priority": 3}).json()["priority"] == 3
    assert api("GET", f"/v1/rules/{second}").json()["priority"] == 3
    same = {"id": third, "sources": ["10.0.2.1"]}
    assert api("POST", "/v1/rules", same).status_code == 200
    assert api("POST", "/v1/rules", {**same, "priority": 4}).status_code == 409
    listed = [
        rule["id"]
        for page in (1, 2, 3)
        for rule in api("GET", f"/v1/rules?page={page}&page_size=7").json()["items"]
    ]
    assert len(listed) == len(set(listed)) == 19 and second in listed and first not in listed
    assert len(kernel.entries) == 19


def test_an_export_with_imported_rules_replaces_itself(api: ApiClient) -> None:
    post(api, LIST)
    exported = api("GET", "/v1/ruleset").json()
    answer = api("PUT", "/v1/ruleset", exported).json()
    assert (answer["added"], answer["deleted"], answer["unchanged"]) == (0, 0, 4)


def test_pages_are_whole_whatever_is_deleted(api: ApiClient, enforcer: Enforcer) -> None:
    rng = random.Random(5)
    api("POST", "/v1/rules", {"id": "before", "sources": ["192.0.2.1"]})
    post(api, "".join(f"10.1.{n}.0/24\n" for n in range(60)))
    api("POST", "/v1/rules", {"id": "between", "sources": ["192.0.2.2"]})
    post(api, "".join(f"2001:db8:{n:x}::/48\n" for n in range(1, 40)))
    names = [rule["id"] for rule in api("GET", "/v1/rules?page_size=1000").json()["items"]]
    assert names[0] == "before" and names[61] == "between" and len(names) == 101
    for rule_id in rng.sample(names, 50):
        api("DELETE", f"/v1/rules/{rule_id}")
        names.remove(rule_id)
        page = rng.randrange(1, 12)
        found = api("GET", f"/v1/rules?page={page}&page_size=9").json()
        assert [rule["id"] for rule in found["items"]] == names[9 * (page - 1) : 9 * page]
        assert found["total"] == len(names)


# -- a rule a line


def post_lines(api: ApiClient, text: str | bytes, **query: object) -> httpx.Response:
    headers = {"Content-Type": "application/x-ndjson"}
    return api("POST", "/v1/rules/import", content=text, headers=headers, params=query)


def test_each_line_of_json_becomes_a_rule(api: ApiClient, kernel: MemoryKernel) -> None:
    text = '\ufeff{"id": "a", "sources": ["203.0.113.7"], "priority": 7}\r\n\n {"protocols": ["udp"]}\n{"id": "c"}'
    assert post_lines(api, text).json() == {"added": 3, "unchanged": 0}
    assert api("GET", "/v1/rules/a").json()["priority"] == 7
    assert api("GET", "/v1/rules").json()["total"] == 3 and kernel.applied == 1
    assert post_lines(api, '{"id": "c"}\n').json() == {"added": 0, "unchanged": 1}
    assert post_lines(api, "\n\n").json() == {"added": 0, "unchanged": 0}


def test_bad_lines_of_json_are_named_and_nothing_is_imported(api: ApiClient, kernel: MemoryKernel) -> None:
    lines = ['{"id": "fine"}', "", "{oops", "[1]", '{"priority": -1, "action": "eat"}', '{"nonsense": 1}']
    response = post_lines(api, "\n".join(lines))
    assert response.status_code == 422 and response.json()["code"] == "invalid_list"
    wanted = ["/line/3", "/line/4", "/line/5/action", "/line/5/priority", "/line/6/nonsense"]
    assert sorted(pointers(response)) == wanted
    assert response.json()["detail"].startswith("line 3: ") and "(and 3 more)" in response.json()["detail"]
    assert not kernel.applied and api("GET", "/v1/rules").json()["total"] == 0


def test_a_line_whose_id_is_taken_is_named_and_nothing_is_imported(api: ApiClient) -> None:
    api("POST", "/v1/rules", {"id": "taken", "priority": 5})
    response = post_lines(api, '{"id": "new"}\n\n{"id": "taken", "priority": 6}\n')
    assert response.status_code == 409 and pointers(response) == ["/line/3/id"]
    response = post_lines(api, '\n{"id": "new"}\n{"id": "new"}\n')
    assert response.status_code == 422 and pointers(response) == ["/line/3/id"]
    assert api("GET", "/v1/rules").json()["total"] == 1


def test_the_query_of_plain_lists_is_refused_for_lines_of_json(api: ApiClient) -> None:
    response = post_lines(api, '{"id": "a"}\n', priority=7)
    assert response.status_code == 422 and pointers(response) == ["?priority"]


def test_lines_for_which_there_is_no_room_are_refused_before_anything_is_written(
    api: ApiClient, kernel: MemoryKernel
) -> None:
    for family in ("10.0.{}.{}", "2001:db8::{:x}:{:x}"):
        lines = [f'{{"sources": ["{family.format(n >> 8, n & 255)}"]}}' for n in range(1001)]
        response = post_lines(api, "\n".join(lines))
        assert response.status_code == 507 and response.json()["code"] == "table_full"
        assert not kernel.applied and api("GET", "/v1/rules").json()["total"] == 0


def test_lines_arrive_in_parts_of_any_size_and_no_line_grows_without_end() -> None:
    text = b"".join(b'{"id": "r%d", "sources": ["10.0.0.%d"]}\n' % (n, n) for n in range(50))
    for size in (1, 7, 1000):
        lines = RuleLines(lambda: "new", 0.0)
        for at in range(0, len(text), size):
            lines.feed(text[at : at + size])
        assert [rule.id for rule in lines.end()] == [f"r{n}" for n in range(50)]
    lines = RuleLines(lambda: "new", 0.0)
    lines.feed(b"\n")
    for _ in range(10):
        lines.feed(b"x" * 100_000)
    with pytest.raises(InvalidInput, match="line 2: is longer"):
        lines.feed(b"x" * 100_000)
