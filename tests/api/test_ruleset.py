"""/v1/ruleset: export, atomic replace, and the entity tag that keeps two writers apart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel

RULES: list[dict[str, Any]] = [{"id": "a", "sources": ["203.0.113.7"]}, {"id": "b", "protocols": ["gre"]}]


def ids(api: ApiClient) -> list[str]:
    return [rule["id"] for rule in api("GET", "/v1/ruleset").json()["rules"]]


def test_an_empty_rule_set_is_exported_as_one(api: ApiClient) -> None:
    assert api("GET", "/v1/ruleset").json() == {"rules": []}


def test_what_was_exported_can_be_put_back(api: ApiClient, kernel: MemoryKernel) -> None:
    api("PUT", "/v1/ruleset", {"rules": RULES})
    exported = api("GET", "/v1/ruleset")
    entries = dict(kernel.entries)
    api("PUT", "/v1/ruleset", {"rules": []})
    assert kernel.entries == {}
    assert api("PUT", "/v1/ruleset", exported.json()).status_code == 200
    assert api("GET", "/v1/ruleset").json() == exported.json()
    assert kernel.entries.keys() == entries.keys()


def test_an_export_of_more_than_one_part_is_whole(api: ApiClient) -> None:
    rules = [{"id": f"r{number}", "enabled": False} for number in range(2500)]
    for at in range(0, len(rules), 500):
        api("POST", "/v1/rules/batch", {"add": rules[at : at + 500]})
    assert ids(api) == [rule["id"] for rule in rules]


def test_a_replace_tells_what_it_did(api: ApiClient) -> None:
    first = api("PUT", "/v1/ruleset", {"rules": RULES})
    assert first.json() == {"rules": 2, "added": 2, "deleted": 0, "unchanged": 0, "warnings": []}
    second = api("PUT", "/v1/ruleset", {"rules": [RULES[0], {"sources": "::1"}]})
    assert second.json() == {"rules": 2, "added": 1, "deleted": 1, "unchanged": 1, "warnings": []}


def test_the_etag_changes_with_the_rules_only(api: ApiClient) -> None:
    def etag() -> str:
        return api("GET", "/v1/ruleset").headers["etag"]

    first = etag()
    assert first.startswith('"')
    assert etag() == first
    api("POST", "/v1/rules", RULES[0])
    second = etag()
    assert second != first
    api("POST", "/v1/rules", RULES[0])
    assert etag() == second
    assert api("PUT", "/v1/ruleset", {"rules": []}).headers["etag"] == etag() != second


def test_a_replace_on_top_of_what_was_read_is_made_once(api: ApiClient) -> None:
    etag = api("PUT", "/v1/ruleset", {"rules": RULES}).headers["etag"]
    first = api("PUT", "/v1/ruleset", {"rules": RULES[:1]}, headers={"If-Match": etag})
    assert first.status_code == 200
    second = api("PUT", "/v1/ruleset", {"rules": []}, headers={"If-Match": etag})
    assert (second.status_code, second.json()["code"]) == (412, "ruleset_changed")
    assert ids(api) == ["a"]


@pytest.mark.parametrize("form", ["*", '"other", {}', " {} "])
def test_if_match_may_be_a_star_or_a_list(api: ApiClient, form: str) -> None:
    etag = api("PUT", "/v1/ruleset", {"rules": RULES}).headers["etag"]
    headers = {"If-Match": form.format(etag)}
    assert api("PUT", "/v1/ruleset", {"rules": []}, headers=headers).status_code == 200


def test_an_export_that_the_client_has_is_not_sent_again(api: ApiClient) -> None:
    etag = api("PUT", "/v1/ruleset", {"rules": RULES}).headers["etag"]
    same = api("GET", "/v1/ruleset", headers={"If-None-Match": f"W/{etag}"})
    assert (same.status_code, same.headers["etag"]) == (304, etag)
    assert api("GET", "/v1/ruleset", headers={"If-None-Match": '"old"'}).status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"rules": [{}, {"sources": "x"}]}, ["/rules/1/sources/0"]),
        ({"rules": [{"id": "a"}, {"id": "a"}]}, ["/rules/1/id"]),
        ({"rules": [{"interfaces": ["eth9"]}]}, ["/rules/0/interfaces/0"]),
        ({"rules": None}, ["/rules"]),
        ({}, ["/rules"]),
        ({"rules": [], "extra": 1}, ["/extra"]),
        ([], [""]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_rule_set_with_a_fault_changes_nothing(api: ApiClient, body: Any, expected: list[str]) -> None:
    api("PUT", "/v1/ruleset", {"rules": RULES})
    refused = api("PUT", "/v1/ruleset", body)
    assert (refused.status_code, pointers(refused)) == (422, expected)
    assert ids(api) == ["a", "b"]
