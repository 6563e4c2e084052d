"""What no request may be: a web page's, for another host, too large, of another media type."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.guard import is_local_name
from tests.api.client import ApiClient


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_web_page_cannot_change_anything(api: ApiClient, method: str) -> None:
    refused = api(method, "/v1/rules/a", headers={"Origin": "http://127.0.0.1:9378"})
    assert (refused.status_code, refused.json()["code"]) == (403, "cross_origin")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_elsewhere_holds_no_connection(api: ApiClient, site: str) -> None:
    """Browsers say where a request comes from (Fetch Metadata). An EventSource on /v1/events has no other mark."""
    for mode in ("cors", "no-cors"):
        refused = api("GET", "/v1/rules", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})
        assert (refused.status_code, refused.json()["code"]) == (403, "cross_origin")
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert api("GET", "/v1/rules", headers=link).status_code == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_documentations_page_and_a_person_can_read(api: ApiClient, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
    assert api("GET", "/v1/rules", headers=headers).status_code == 200


def test_a_page_of_this_service_can_read(api: ApiClient) -> None:
    assert api("GET", "/v1/rules", headers={"Origin": "http://127.0.0.1:9378"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9378", "127.0.0.1.evil.example", "[evil]:1"])
def test_another_hosts_name_is_refused(api: ApiClient, host: str) -> None:
    refused = api("GET", "/v1/rules", headers={"Host": host})
    assert (refused.status_code, refused.json()["code"]) == (421, "misdirected_request")


def test_each_of_two_names_is_looked_at(api: ApiClient) -> None:
    refused = api("GET", "/v1/rules", headers=[("Host", "127.0.0.1"), ("Host", "evil.example")])
    assert (refused.status_code, refused.json()["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9378", "localhost", "LocalHost:80", "[::1]", "[::1]:9378"]
)
def test_an_address_or_localhost_is_this_host(host: str) -> None:
    assert is_local_name(host)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_media_type_is_a_415(api: ApiClient, media_type: str) -> None:
    refused = api("POST", "/v1/rules", content=b"{}", headers={"Content-Type": media_type})
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    assert api("GET", "/v1/rules").json()["total"] == 0


def test_a_merge_patch_is_no_rule(api: ApiClient) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    assert api("POST", "/v1/rules", content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json; charset=utf-8"}])
def test_json_may_be_said_or_not(api: ApiClient, headers: dict[str, str]) -> None:
    assert api("POST", "/v1/rules", content=b"{}", headers=headers).status_code == 201


def test_a_request_without_body_needs_no_media_type(api: ApiClient) -> None:
    headers = {"Content-Type": "text/plain", "Content-Length": "0"}
    assert api("PUT", "/v1/interfaces/eth0", headers=headers).status_code == 200


def in_parts(total: int) -> Iterator[bytes]:
    yield b'{"description": "'
    yield from (b"x" * 1000 for _ in range(total // 1000))
    yield b'"}'


async def sent_in_parts(total: int) -> object:
    for part in in_parts(total):
        yield part


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_body_that_is_too_large_is_a_413(api: ApiClient, tells_length: bool) -> None:
    content = b"".join(in_parts(200_000)) if tells_length else sent_in_parts(200_000)
    refused = api("POST", "/v1/rules", content=content)
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert refused.headers["connection"] == "close"
    assert api("GET", "/v1/rules").json()["total"] == 0
