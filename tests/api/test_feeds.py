"""Feeds through the API, over the real store: what is asked, what is answered, whose sets are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import outside
from api.app import create_app
from feeds.sets import CROWDSEC_SOURCE
from firewall.enforcer import Enforcer
from firewall.settings import Settings
from tests.api.client import ApiClient, pointers
from tests.unit.list_server import ListServer, answer

GOOD = b"203.0.113.7\n198.51.100.0/24\n2001:db8::/32\n10.0.0.0/8\n"


class Outside:
    """The application with its feeds, and a server of lists, in the client's event loop."""

    def __init__(self, client: ApiClient, server: ListServer, enforcer: Enforcer, directory: Path) -> None:
        self.client, self.server, self.enforcer, self.directory = client, server, enforcer, directory

    def run(self, coroutine: Any) -> Any:
        return self.client.run(coroutine)

    def settings(self, **sections: Any) -> Settings:
        return Settings.model_validate({"state": {"directory": str(self.directory)}, **sections})

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return self.client(method, path, body)


@pytest.fixture
def api(
    enforcer: Enforcer, openapi_document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Outside]:
    monkeypatch.setattr(outside, "own_addresses", list)  # not those of the machine that runs the tests
    app = create_app(enforcer)
    app.openapi_schema = openapi_document
    running = app.state.running
    with ApiClient(app) as client:
        server = client.run(ListServer().__aenter__())
        server.answers["/list"] = answer(200, GOOD)
        bench = Outside(client, server, enforcer, tmp_path)
        client.run(outside.begin(running, bench.settings()))
        yield bench
        client.run(outside.end(running))
        client.run(server.__aexit__(None, None, None))
    running.close()


def entries(api: Outside, name: str) -> list[str]:
    return [each["address"] for each in api("GET", f"/v1/sets/{name}/entries").json()["items"]]


def feed(api: Outside, **fields: Any) -> dict[str, Any]:
    return {"name": "bad", "url": api.server.url("/list"), **fields}


def test_a_feed_is_made_with_its_set_and_refreshed(api: Outside) -> None:
    made = api("POST", "/v1/feeds", feed(api, refresh="2h"))
    assert made.status_code == 201
    body = made.json()
    assert (body["origin"], body["set"], body["refresh"], body["reserved"]) == (
        "api",
        "bad",
        7200,
        "leave_out",
    )
    assert api("GET", "/v1/sets/bad").json()["source"] == "feed:bad"
    assert api("POST", "/v1/rules", {"id": "r", "sources": ["@bad"]}).status_code == 201
    assert api("POST", "/v1/feeds", feed(api, refresh="2h")).status_code == 200
    refreshed = api("POST", "/v1/feeds/bad/refresh").json()
    assert refreshed["feed"]["state"]["entries"] == 3 and refreshed["changed"]
    assert entries(api, "bad") == ["198.51.100.0/24", "203.0.113.7", "2001:db8::/32"]
    state = api("GET", "/v1/feeds/bad").json()["state"]
    assert (state["reserved"], state["reserved_first"], state["error"]) == (1, ["10.0.0.0/8"], None)
    assert state["next_refresh"] and state["last_success"]
    assert api("GET", "/v1/feeds/bad").json()["rules"] == ["r"]
    assert [each["name"] for each in api("GET", "/v1/feeds").json()["items"]] == ["bad"]


def test_feeds_and_what_they_bring_are_in_the_audit(api: Outside) -> None:
    assert api("POST", "/v1/feeds", feed(api)).status_code == 201
    assert api("POST", "/v1/feeds/bad/refresh").status_code == 200
    assert api("DELETE", "/v1/feeds/bad").status_code == 204
    told = [(each["action"], each["target"]) for each in api("GET", "/v1/audit").json()["items"]]
    assert {
        ("feed.add", "bad"),
        ("set.create", "bad"),
        ("set.replace", "bad"),
        ("feed.delete", "bad"),
    } <= set(told)


def test_the_set_of_a_feed_is_the_feeds_alone_until_it_is_gone(api: Outside) -> None:
    api("POST", "/v1/feeds", feed(api))
    api("POST", "/v1/feeds/bad/refresh")
    refused = api("POST", "/v1/sets/bad/entries", {"entries": ["192.0.2.1"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "set_managed")
    assert api("DELETE", "/v1/sets/bad").status_code == 409
    assert api("DELETE", "/v1/feeds/bad").status_code == 204
    assert len(entries(api, "bad")) == 3
    assert api("POST", "/v1/sets/bad/entries", {"entries": ["192.0.2.1"]}).status_code == 200
    assert api("GET", "/v1/feeds/bad").status_code == 404


def test_a_set_that_has_entries_is_not_taken_over(api: Outside) -> None:
    api("PUT", "/v1/sets/bad")
    assert api("POST", "/v1/feeds", feed(api)).status_code == 201
    api("PUT", "/v1/sets/mine")
    api("POST", "/v1/sets/mine/entries", {"entries": ["192.0.2.1"]})
    refused = api("POST", "/v1/feeds", feed(api, name="other", set="mine"))
    assert (refused.status_code, refused.json()["code"]) == (409, "set_managed")
    assert api("GET", "/v1/feeds/other").status_code == 404
    assert entries(api, "mine") == ["192.0.2.1"]


def test_a_refused_list_is_a_502_that_says_why_and_the_last_good_one_stays(api: Outside) -> None:
    api("POST", "/v1/feeds", feed(api))
    api("POST", "/v1/feeds/bad/refresh")
    api.server.answers["/list"] = answer(500)
    refused = api("POST", "/v1/feeds/bad/refresh")
    assert (refused.status_code, refused.json()["code"]) == (502, "feed_failed")
    assert "500" in refused.json()["detail"]
    state = api("GET", "/v1/feeds/bad").json()["state"]
    assert (state["error"]["reason"], state["entries"], len(entries(api, "bad"))) == ("http_status", 3, 3)
    assert api("GET", "/v1/status").json()["feeds_failing"] == ["bad"]
    metrics = api("GET", "/metrics").text
    assert 'ebpf_fw_feed_failing{feed="bad"} 1.0' in metrics
    assert 'ebpf_fw_feed_refusals_total{feed="bad",reason="http_status"} 1.0' in metrics
    assert 'ebpf_fw_feed_entries{feed="bad"} 3.0' in metrics


def test_a_preview_tells_the_difference_and_changes_nothing(api: Outside) -> None:
    api("POST", "/v1/feeds", feed(api))
    api("POST", "/v1/feeds/bad/refresh")
    api.server.answers["/list"] = answer(200, b"203.0.113.7\nnonsense\n192.0.2.1\n")
    preview = api("POST", "/v1/feeds/bad/preview").json()
    assert preview["taken"] and (preview["added"], preview["removed"], preview["unchanged"]) == (1, 2, 1)
    assert preview["first_added"] == ["192.0.2.1"] and preview["bad"] == 1
    assert len(entries(api, "bad")) == 3
    api.server.answers["/list"] = answer(200, b"")
    preview = api("POST", "/v1/feeds/bad/preview").json()
    assert not preview["taken"] and preview["refusal"]["reason"] == "empty"


def test_force_takes_a_list_that_shrank(api: Outside) -> None:
    api.server.answers["/list"] = answer(200, b"".join(b"192.0.2.%d\n" % each for each in range(100)))
    api("POST", "/v1/feeds", feed(api))
    api("POST", "/v1/feeds/bad/refresh")
    api.server.answers["/list"] = answer(200, GOOD)
    assert api("POST", "/v1/feeds/bad/refresh").status_code == 502
    assert api("POST", "/v1/feeds/bad/refresh?force=true").json()["removed"] == 100


@pytest.mark.parametrize(
    ("fields", "where"),
    [({"url": None}, "/url"), ({"url": "ftp://x/"}, "/url"), ({"refresh": 5}, "/refresh"),
     ({"refresh": "soon"}, "/refresh"),
     ({"format": "xml"}, "/format"), ({"file": "/etc/passwd"}, "/file"), ({"name": "a b"}, "/name"),
     ({"max_shrink": 2}, "/max_shrink"), ({"set": "a b"}, "/set")],
)  # fmt: skip
def test_wrong_feeds_are_refused_by_field(api: Outside, fields: dict[str, Any], where: str) -> None:
    refused = api("POST", "/v1/feeds", {**feed(api), **fields})
    assert (refused.status_code, pointers(refused)) == (422, [where])
    assert api("GET", "/v1/feeds").json()["items"] == []


def test_a_feed_is_replaced(api: Outside) -> None:
    api("POST", "/v1/feeds", feed(api))
    replaced = api("PUT", "/v1/feeds/bad", {"url": api.server.url("/other"), "refresh": 60})
    assert (replaced.status_code, replaced.json()["refresh"]) == (200, 60)
    assert api("PUT", "/v1/feeds/none", {"url": api.server.url("/x")}).status_code == 404
    again = api("POST", "/v1/feeds", feed(api))
    assert (again.status_code, again.json()["code"]) == (409, "feed_exists")


def test_a_password_in_the_url_is_not_told(api: Outside) -> None:
    url = api.server.url("/list").replace("http://", "http://user:secret@")
    assert "secret" not in api("POST", "/v1/feeds", feed(api, url=url)).text
    assert "secret" not in api("GET", "/v1/sets/bad").text


def test_feeds_of_the_config_follow_a_reload(api: Outside) -> None:
    running = api.client.app.state.running
    one = {"name": "c", "url": api.server.url("/list")}
    api.run(outside.follow_config(running, api.settings(feeds=[one])))
    assert api("GET", "/v1/feeds/c").json()["origin"] == "config"
    refused = api("DELETE", "/v1/feeds/c")
    assert (refused.status_code, refused.json()["code"]) == (409, "feed_of_config")
    api("POST", "/v1/feeds/c/refresh")
    api.run(outside.follow_config(running, api.settings()))
    assert api("GET", "/v1/feeds/c").status_code == 404
    assert api("GET", "/v1/sets/c").json()["source"] == "api" and len(entries(api, "c")) == 3


def test_crowdsec_is_off_until_the_config_has_it(api: Outside) -> None:
    running = api.client.app.state.running
    assert api("GET", "/v1/crowdsec").json() == {"state": "off"}
    decisions = (
        b'{"new":[{"id":1,"origin":"cscli","type":"ban","scope":"Ip","value":"203.0.113.9","duration":"4h"}]}'
    )
    api.server.answers["/v1/decisions/stream"] = answer(200, decisions)
    section = {"url": api.server.url("/"), "api_key": "x"}
    api.run(outside.follow_config(running, api.settings(crowdsec=section)))

    async def streams() -> None:
        while running.crowdsec.progress.state != "streaming":  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    api.run(asyncio.wait_for(streams(), 10))
    assert api("GET", "/v1/crowdsec").json()["addresses"] == 1
    assert entries(api, "crowdsec") == ["203.0.113.9"]
    assert api("GET", "/v1/sets/crowdsec").json()["source"] == CROWDSEC_SOURCE
    assert 'ebpf_fw_crowdsec_state{state="streaming"} 1.0' in api("GET", "/metrics").text
    assert api("GET", "/v1/status").json()["crowdsec"] == "streaming"
    api.run(outside.follow_config(running, api.settings()))
    assert api("GET", "/v1/crowdsec").json() == {"state": "off"}
    assert api("GET", "/v1/sets/crowdsec").json()["source"] == "api"
