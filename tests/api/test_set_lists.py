"""Whole lists into sets and out of them."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.api.client import ApiClient, pointers

PLAIN = "# feed\n203.0.113.7\n198.51.100.0/24 ; x\n2001:db8::/32\n192.0.2.0-192.0.2.2\n"


@pytest.fixture(autouse=True)
def bad(api: ApiClient) -> None:
    assert api("PUT", "/v1/sets/bad").status_code == 201


def post(
    api: ApiClient, content: str | bytes, media_type: str | None = "text/plain", **query: object
) -> httpx.Response:
    headers = {} if media_type is None else {"Content-Type": media_type}
    return api("POST", "/v1/sets/bad/import", content=content, headers=headers, params=query)


def entries(api: ApiClient) -> dict[str, Any]:
    items = api("GET", "/v1/sets/bad/entries?page_size=1000").json()["items"]
    return {each["address"]: (each["expires_at"], each["comment"]) for each in items}


def export(api: ApiClient, form: str) -> str:
    answer = api("GET", f"/v1/sets/bad/export?format={form}")
    assert answer.status_code == 200
    return answer.text


def test_a_plain_list_is_added_deleted_and_replaced(api: ApiClient) -> None:
    answer = post(api, PLAIN).json()
    assert {name: answer[name] for name in ("added", "entries", "bad", "host_bits", "format", "errors")} == {
        "added": 5, "entries": 5, "bad": 0, "host_bits": 0, "format": "plain", "errors": [],
    }  # fmt: skip
    assert list(entries(api)) == [
        "192.0.2.0/31",
        "192.0.2.2",
        "198.51.100.0/24",
        "203.0.113.7",
        "2001:db8::/32",
    ]
    again = post(api, PLAIN).json()
    assert (again["added"], again["unchanged"]) == (0, 5)
    gone = post(api, "203.0.113.7\n203.0.113.8\n", mode="delete").json()
    assert (gone["removed"], gone["missing"]) == (1, 1)
    replaced = post(api, "203.0.113.9\n198.51.100.0/24\n", mode="replace").json()
    assert (replaced["added"], replaced["removed"]) == (1, 3)
    assert list(entries(api)) == ["198.51.100.0/24", "203.0.113.9"]


def test_bad_lines_are_told_and_the_others_taken_unless_strict(api: ApiClient) -> None:
    text = "203.0.113.7\nexample.org\n10.0.0.1/8\n"
    answer = post(api, text, strict=True)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_list")
    assert pointers(answer) == ["/line/2", "/line/3"] and entries(api) == {}
    answer = post(api, text)
    assert (answer.json()["bad"], answer.json()["host_bits"], pointers(answer)) == (1, 1, ["/line/2"])
    assert list(entries(api)) == ["10.0.0.0/8", "203.0.113.7"]


def test_a_list_that_is_none_never_empties_a_set(api: ApiClient) -> None:
    post(api, PLAIN)
    for text, code in (("", "empty_list"), ("# nothing\n", "empty_list"), ("404 not found\n", "invalid_list"),
                       ("<!DOCTYPE html>", "invalid_list")):  # fmt: skip
        answer = post(api, text, mode="replace")
        assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert post(api, "404\n", mode="replace", allow_empty=True).status_code == 422
    assert len(entries(api)) == 5
    assert post(api, "", mode="replace", allow_empty=True).json()["removed"] == 5
    assert post(api, "").json()["added"] == 0


def test_times_and_comments_come_with_a_list_and_go_out_with_an_export(api: ApiClient) -> None:
    lines = [
        {"address": "203.0.113.7", "ttl": 3600, "comment": 'a "scan"\n; really # so'},
        {"address": "2001:db8::/32", "expires_at": "2100-01-01T00:00:00Z"},
        {"address": "0.0.0.0/0"},
    ]
    text = "".join(json.dumps(each) + "\n" for each in lines)
    assert post(api, text, "application/x-ndjson").json()["added"] == 3
    before = entries(api)
    assert before["2001:db8::/32"] == ("2100-01-01T00:00:00Z", None)
    assert before["203.0.113.7"][1] == lines[0]["comment"]
    exported = export(api, "ndjson")
    post(api, "192.0.2.1\n", mode="replace")
    answer = post(api, exported, "application/x-ndjson", mode="replace").json()
    assert (answer["added"], answer["bad"], entries(api)) == (3, 0, before)


@pytest.mark.parametrize("form", ["plain", "ipset"])
def test_other_exports_are_read_again_too(api: ApiClient, form: str) -> None:
    post(api, '{"ip":"203.0.113.7","comment":"a \\"b\\"","ttl":3600}\n{"ip":"2001:db8::1"}\n{"ip":"::/0"}\n')
    exported = export(api, form)
    post(api, "192.0.2.1\n", mode="replace")
    answer = post(api, exported, mode="replace").json()
    assert (answer["format"], answer["bad"]) == (form, 0)
    halves = ["::/1", "8000::/1"] if form == "ipset" else ["::/0"]
    assert sorted(entries(api)) == sorted(["203.0.113.7", "2001:db8::1", *halves])
    if form == "ipset":
        assert entries(api)["203.0.113.7"][0] is not None and entries(api)["203.0.113.7"][1] == "a 'b'"


def test_an_export_that_is_read_later_means_the_same_moment(api: ApiClient) -> None:
    post(api, "203.0.113.7\n", ttl="1h")
    until = json.loads(export(api, "ndjson"))["expires_at"]
    time.sleep(0.01)
    post(api, export(api, "ndjson"), mode="replace")
    assert entries(api)["203.0.113.7"][0] == until


@pytest.mark.parametrize(
    ("content", "media_type", "form"),
    [
        ('{"nftables":[{"set":{"elem":["203.0.113.7"]}}]}', "application/json", "nft"),
        ("ip,comment\n203.0.113.7,x\n", "text/csv", "csv"),
        ("create x hash:ip\nadd x 203.0.113.7\n", "application/octet-stream", "ipset"),
        ('{"cidr":"203.0.113.7/32","sblid":"SBL1"}\n{"type":"metadata","records":1}\n', None, "ndjson"),
    ],
)
def test_every_format_is_found_out(api: ApiClient, content: str, media_type: str | None, form: str) -> None:
    answer = post(api, content, media_type)
    assert (answer.json()["format"], answer.json()["added"], list(entries(api))) == (form, 1, ["203.0.113.7"])


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"mode": "merge"}, "?mode"),
        ({"format": "xml"}, "?format"),
        ({"ttl": "soon"}, "?ttl"),
        ({"what": "1"}, "?what"),
    ],
)
def test_wrong_queries_are_named(api: ApiClient, query: dict[str, str], pointer: str) -> None:
    answer = post(api, PLAIN, **query)
    assert (answer.status_code, pointers(answer)) == (422, [pointer])


def test_a_set_that_is_not_there_and_one_of_somebody_else(api: ApiClient, enforcer: Any) -> None:
    assert api("POST", "/v1/sets/none/import", content=PLAIN).status_code == 404
    assert api("GET", "/v1/sets/none/export").status_code == 404
    enforcer.give_set("bad", "feed:x")
    answer = post(api, PLAIN)
    assert (answer.status_code, answer.json()["code"]) == (409, "set_managed")


def test_a_dry_run_changes_nothing(api: ApiClient) -> None:
    assert post(api, PLAIN, dry_run=True).json()["added"] == 5
    assert entries(api) == {}


def test_a_list_may_be_larger_than_other_bodies_but_not_endless(api: ApiClient) -> None:
    line = "203.0.113.7\n"
    assert post(api, line * 20_000).json()["entries"] == 20_000  # 240 kB, and other bodies may have 100 kB
    assert post(api, line * 40_000).status_code == 413
    assert post(api, PLAIN, "image/png").status_code == 415


def test_a_full_table_changes_nothing(api: ApiClient) -> None:
    api("POST", "/v1/rules", {"id": "r", "sources": ["@bad"]})
    answer = post(api, "".join(f"10.0.{i >> 8}.{i & 255}\n" for i in range(1001)))
    assert (answer.status_code, answer.json()["code"]) == (507, "table_full")
    assert entries(api) == {}
