"""Feeds against a server that answers well and badly: what gets into the set, and what never empties it."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from feeds.errors import FeedFailed
from feeds.feed import Around, FollowedFeed
from feeds.fetch import MOST_REDIRECTS, _hint
from feeds.state import FILE, FeedState, FeedStore
from feeds.subscriptions import Subscriptions
from firewall.address import BITS, parse_prefix
from firewall.errors import Conflict, NotFound, table_full
from firewall.kernel.own_addresses import own_addresses
from firewall.settings import Feed
from tests.unit.list_server import ListServer, Request, answer, raw, with_server
from tests.unit.memory_sets import MemorySets

MANY = "".join(f"198.51.{i // 256}.{i % 256}\n" for i in range(1000)).encode()
GOOD = b"198.51.100.0/24\n203.0.113.7\n2001:db8::/32\n"
EARLIER, NOW = "Sun, 15 Nov 2026 10:00:00 GMT", "Sun, 15 Nov 2026 10:00:01 GMT"
GOOD_TEXT = ["198.51.100.0/24", "2001:db8::/32", "203.0.113.7"]


class Bench:
    """A server, sets in memory, and a feed of the server's /list."""

    def __init__(self, server: ListServer) -> None:
        self.server, self.sets = server, MemorySets()
        self.now = 1_800_000_000.0
        own = (parse_prefix("192.0.2.1"),)
        self.around = Around(self.sets, "ebpf-fw/test", lambda: own, lambda: self.now, lambda: 1.0)

    def feed(self, path: str = "/list", state: FeedState | None = None, **fields: Any) -> FollowedFeed:
        wanted = Feed.model_validate({"name": "f", "url": self.server.url(path), **fields})
        return FollowedFeed(wanted, "config", state or FeedState(), self.around)


def with_bench(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    run = with_server(lambda server: test(Bench(server)))
    run.__name__ = test.__name__
    return run


async def refused(feed: FollowedFeed, force: bool = False) -> FeedFailed:
    with pytest.raises(FeedFailed) as caught:
        await feed.refresh(force)
    assert feed.state.error_reason == caught.value.reason and feed.state.error_detail
    return caught.value


@with_bench
async def test_a_list_goes_into_its_set_with_the_feed_as_its_source(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, GOOD)
    feed = bench.feed(set="bad")
    applied = await feed.refresh()
    assert applied is not None and applied.added == 3
    assert bench.sets.addresses("bad") == GOOD_TEXT
    assert bench.sets.sources == {"bad": "feed:f"}
    assert (feed.state.entries, feed.state.last_success, feed.state.error_reason) == (3, bench.now, "")
    assert bench.server.requests[0].headers["user-agent"] == "ebpf-fw/test"


@with_bench
async def test_an_unchanged_list_is_not_sent_again(bench: Bench) -> None:
    async def conditional(request: Request, writer: asyncio.StreamWriter) -> None:
        same = request.headers.get("if-none-match") == '"v1"'
        await answer(
            304 if same else 200, b"" if same else GOOD, etag='"v1"', last_modified=EARLIER, date=NOW
        )(request, writer)

    bench.server.answers["/list"] = conditional
    feed = bench.feed()
    await feed.refresh()
    bench.now += 60
    assert await feed.refresh() is None
    assert bench.server.requests[1].headers["if-modified-since"] == EARLIER
    assert feed.state.last_success == bench.now and bench.sets.changes == 1
    # What is in the set is not what the server means by "unchanged": it is asked for all of it.
    bench.sets.entries["f"].popitem()
    assert await feed.refresh() is not None
    assert bench.sets.addresses("f") == GOOD_TEXT
    other = bench.feed(state=feed.state, format="plain")
    assert await other.refresh() is not None


@pytest.mark.parametrize(
    ("headers", "asked_with"),
    [
        ({"last_modified": NOW, "date": NOW, "etag": '"1-4"'}, {}),
        ({"last_modified": NOW, "date": EARLIER}, {}),
        ({"last_modified": "Fri, 01 Jan 2100 10:00:00 GMT"}, {}),
        ({"last_modified": EARLIER}, {"if-modified-since": EARLIER}),
        ({"last_modified": EARLIER, "date": "yesterday"}, {"if-modified-since": EARLIER}),
        ({"last_modified": "x", "date": NOW, "etag": '"v"'}, {"if-none-match": '"v"'}),
        ({"last_modified": "Fri, 31 Dec 99999999 00:00:00 GMT"}, {}),
    ],
    ids=["this second", "later", "later, no date", "no date", "no clock", "no date of change", "no year"],
)
def test_a_list_that_may_still_change_within_its_second_is_sent_again(
    headers: dict[str, str], asked_with: dict[str, str]
) -> None:
    @with_bench
    async def asked_again(bench: Bench) -> None:
        bench.server.answers["/list"] = answer(200, GOOD, **headers)
        feed = bench.feed()
        await feed.refresh()
        await feed.refresh()
        told = bench.server.requests[1].headers
        assert {
            name: told[name] for name in ("if-modified-since", "if-none-match") if name in told
        } == asked_with

    asked_again()


@with_bench
async def test_a_304_that_nobody_asked_for_is_no_list(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(304)
    assert (await refused(bench.feed())).reason == "http_status"


HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(50 << 20))
BROKEN = {
    "web page": (answer(200, b"<!DOCTYPE html><html>sign in", content_type="text/html"), "broken"),
    "only bad lines": (answer(200, b"not a list\nof addresses\n"), "broken"),
    "empty": (answer(200, b""), "empty"),
    "only comments": (answer(200, b"# come back later\n"), "empty"),
    "binary": (answer(200, b"\0\1\2\3" * 100), "broken"),
    "404": (answer(404, GOOD), "http_status"),
    "500": (answer(500, GOOD), "http_status"),
    "truncated": (raw(HEAD + b"Content-Length: 1000\r\n\r\n203.0.113.7\n"), "unreachable"),
    "truncated chunks": (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nc\r\n203.0.113.7\n\r\n"), "unreachable"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "unreachable"),
    "nothing at all": (raw(b""), "unreachable"),
    "broken gzip": (answer(200, b"\x1f\x8b\x08" + bytes(50), content_encoding="gzip"), "broken"),
    "cut gzip": (answer(200, gzip.compress(GOOD)[:-9], content_encoding="gzip"), "broken"),
    "cut gzip file": (answer(200, gzip.compress(GOOD)[:-9]), "broken"),
    "brotli, unasked": (answer(200, b"x", content_encoding="br"), "unreadable"),
    "gzip that is none": (answer(200, GOOD, content_encoding="gzip"), "broken"),
    "too large": (answer(200, b"203.0.113.7\n" * 1000), "too_large"),
    "too large, not said": (raw(HEAD + b"Connection: close\r\n\r\n" + b"203.0.113.7\n" * 1000), "too_large"),
    "gzip bomb": (answer(200, BOMB, content_encoding="gzip"), "too_large"),
    "gzip bomb in gzip": (answer(200, gzip.compress(BOMB), content_encoding="gzip"), "too_large"),
    "redirect to a file": (answer(302, location="file:///etc/passwd"), "redirect"),
    "redirect to nowhere": (answer(302), "redirect"),
    "redirect loop": (answer(302, location="/list"), "redirect"),
    "all reserved": (answer(200, b"10.0.0.0/8\n192.168.1.0/24\n0.0.0.0/0\n"), "empty"),
}  # fmt: skip


@with_bench
async def test_what_is_broken_never_empties_the_set(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, GOOD)
    feed = bench.feed(max_bytes=10_000)
    await feed.refresh()
    for name, (handler, reason) in BROKEN.items():
        bench.server.answers["/list"] = handler
        found = await refused(feed)
        assert (found.reason, name) == (reason, name)
        assert bench.sets.addresses("f") == GOOD_TEXT, name
        assert feed.state.entries == 3, name
    assert feed.state.failures == len(BROKEN) == sum(feed.state.refusals.values())
    bench.server.answers["/list"] = answer(200, GOOD)
    await feed.refresh()
    assert (feed.state.failures, feed.state.error_reason) == (0, "")


@with_bench
async def test_a_slow_server_is_left_in_time(bench: Bench) -> None:
    gone = asyncio.Event()

    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b"203.0.113.7\n")
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            gone.set()

    bench.server.answers["/list"] = drip
    assert (await refused(bench.feed(timeout=1))).reason == "timeout"
    await gone.wait()


@with_bench
async def test_nobody_listens(bench: Bench) -> None:
    feed = FollowedFeed(Feed(name="f", url="http://127.0.0.1:1/x"), "config", FeedState(), bench.around)
    assert (await refused(feed)).reason == "unreachable"


@with_bench
async def test_redirects_are_followed_so_far(bench: Bench) -> None:
    for hop in range(MOST_REDIRECTS):
        bench.server.answers[f"/{hop}"] = answer(301, location=f"/{hop + 1}")
    bench.server.answers[f"/{MOST_REDIRECTS}"] = answer(200, GOOD)
    await bench.feed("/0").refresh()
    assert bench.sets.addresses("f") == GOOD_TEXT
    bench.server.answers[f"/{MOST_REDIRECTS}"] = answer(301, location="/end")
    bench.server.answers["/end"] = answer(200, GOOD)
    assert (await refused(bench.feed("/0"))).reason == "redirect"


@with_bench
async def test_packed_lists_are_unpacked(bench: Bench) -> None:
    for body, headers in (
        (gzip.compress(GOOD), {"content_encoding": "gzip"}),
        (gzip.compress(GOOD), {}),
        (gzip.compress(GOOD[:20]) + gzip.compress(GOOD[20:]), {}),
        (gzip.compress(gzip.compress(GOOD)), {"content_encoding": "gzip"}),
    ):
        bench.server.answers["/list.gz"] = answer(200, body, **headers)
        feed = bench.feed("/list.gz")
        bench.sets.entries.clear()
        await feed.refresh()
        assert bench.sets.addresses("f") == GOOD_TEXT


@with_bench
async def test_a_list_that_shrank_is_taken_only_by_force(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, MANY)
    feed = bench.feed()
    await feed.refresh()
    bench.server.answers["/list"] = answer(200, b"".join(MANY.splitlines(keepends=True)[:499]))
    found = await refused(feed)
    assert found.reason == "shrunk" and "50%" in found.detail and "force" in found.hint
    assert len(bench.sets.entries["f"]) == feed.state.entries == 1000
    bench.server.answers["/list"] = answer(200, b"".join(MANY.splitlines(keepends=True)[:500]))
    await feed.refresh()
    bench.server.answers["/list"] = answer(200, GOOD)
    await refused(feed)
    await feed.refresh(force=True)
    assert bench.sets.addresses("f") == GOOD_TEXT
    # The next list is compared with what was taken.
    await feed.refresh()


@with_bench
async def test_force_takes_no_broken_list(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, b"")
    assert (await refused(bench.feed(), force=True)).reason == "empty"


@with_bench
async def test_networks_of_ones_own_are_left_out_and_told(bench: Bench) -> None:
    own = parse_prefix("192.0.2.1")
    text = (
        f"203.0.113.7\n10.0.0.0/8\n192.0.0.0/8\n0.0.0.0/0\n::/0\nfe80::1\n198.51.100.9\n{own}\n192.0.2.0/28\n"
    )
    bench.server.answers["/list"] = answer(200, text.encode())
    bench.sets.spared = [parse_prefix("198.51.100.0/24")]
    feed = bench.feed()
    await feed.refresh()
    assert bench.sets.addresses("f") == ["198.51.100.9", "203.0.113.7"]
    assert feed.state.own == 2  # itself and its network; what is reserved too counts there
    # never_drop: both default routes of IPv4 and IPv6 hold nothing of it but 0.0.0.0/0.
    assert (feed.state.reserved >= 5, feed.state.never_drop) == (True, 2)
    assert "10.0.0.0/8" in feed.state.told
    kept = bench.feed(reserved="keep", set="kept")
    await kept.refresh()
    assert "10.0.0.0/8" in bench.sets.addresses("kept") and kept.state.reserved == feed.state.reserved


def test_own_addresses_are_those_of_the_host() -> None:
    mine = own_addresses()
    assert all(each.length == BITS[each.version] for each in mine)
    assert not any(parse_prefix("127.0.0.0/8").covers(each) for each in mine)


@with_bench
async def test_what_the_firewall_refuses_is_told_and_tried_again(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, GOOD)
    bench.sets.failing = table_full("address4", 10, 11, "bpf.max_addresses", "addresses")
    feed = bench.feed()
    found = await refused(feed)
    assert found.reason == "refused" and "address4" in found.detail
    bench.sets.failing = None
    await feed.refresh()


@with_bench
async def test_failures_are_tried_again_later_and_later(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(503, retry_after="3000")
    feed = bench.feed(refresh="1h")
    waits = []
    for _ in range(10):
        await refused(feed)
        assert feed.next_refresh is not None
        waits.append(feed.next_refresh - bench.now)
        bench.server.answers["/list"] = answer(503)
    assert 2990 < waits[0] < 3010
    assert [round(wait) for wait in waits[1:8]] == [60, 120, 240, 480, 960, 1920, 3600]


@with_bench
async def test_a_preview_changes_nothing_and_says_what_would(bench: Bench) -> None:
    bench.server.answers["/list"] = answer(200, GOOD + b"junk\n")
    feed = bench.feed()
    await feed.refresh()
    bench.server.answers["/list"] = answer(200, b"203.0.113.7\n192.0.2.9\n")
    preview = await feed.preview()
    assert (preview.added, preview.removed, preview.unchanged, preview.refusal) == (1, 2, 1, None)
    assert preview.sample_added == ("192.0.2.9",)
    assert sorted(preview.sample_removed) == ["198.51.100.0/24", "2001:db8::/32"]
    assert bench.sets.addresses("f") == GOOD_TEXT
    bench.server.answers["/list"] = answer(500)
    preview = await feed.preview()
    assert preview.read is None and preview.refusal is not None and preview.refusal.reason == "http_status"
    bench.server.answers["/list"] = answer(200, MANY)
    await feed.refresh(force=True)
    bench.server.answers["/list"] = answer(200, GOOD)
    preview = await feed.preview()
    assert preview.removed == 1000 and preview.refusal is not None and preview.refusal.reason == "shrunk"


def test_a_feed_from_a_file(tmp_path: Path) -> None:
    async def live() -> None:
        sets, file = MemorySets(), tmp_path / "list.ndjson"
        file.write_text('{"ip":"203.0.113.7","comment":"scan"}\n')
        around = Around(sets, "x", tuple, lambda: 1_800_000_000.0, lambda: 1.0)
        feed = FollowedFeed(Feed(name="f", file=file), "config", FeedState(), around)
        await feed.refresh()
        assert list(sets.entries["f"].values()) == [(0.0, "scan")] and feed.state.format == "ndjson"
        assert await feed.refresh() is None
        file.write_text('{"ip":"203.0.113.8"}\n')
        assert await feed.refresh() is not None
        file.unlink()
        assert (await refused(feed)).reason == "unreadable"
        os.mkfifo(file)
        assert (await refused(feed)).reason == "unreadable"
        assert sets.addresses("f") == ["203.0.113.8"]

    asyncio.run(live())


# --- all feeds ---------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - a file on disk sets no event
        await asyncio.sleep(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def test_feeds_are_refreshed_by_themselves_and_their_state_is_there_after_a_restart(directory: Path) -> None:
    async def live() -> None:
        async with ListServer() as server, asyncio.timeout(30):
            server.answers["/list"] = answer(200, GOOD, etag='"v"')
            sets = MemorySets()
            feed = Feed(name="f", url=server.url("/list"))
            feeds = Subscriptions([feed], FeedStore(directory), Around(sets, "x"))
            made, is_new = await feeds.add(Feed(name="g", url=server.url("/list")))
            assert is_new and made.origin == "api"
            feeds.start()
            await until(lambda: sets.addresses("f") == sets.addresses("g") == GOOD_TEXT)
            await until(lambda: b'"entries":3' in (directory / FILE).read_bytes())
            await feeds.close()
            assert (directory / FILE).stat().st_mode & 0o077 == 0  # URLs may hold passwords
            asked = len(server.requests)
            again = Subscriptions([feed], FeedStore(directory), Around(sets, "x"))
            assert [each.feed.name for each in again.all()] == ["f", "g"]
            assert again.get("f").state.entries == 3 and again.get("g").origin == "api"
            again.start()
            await asyncio.sleep(0.1)
            assert len(server.requests) == asked  # asked lately: not again yet
            assert await again.refresh("f") is not None  # the server knows no If-None-Match
            await again.close()

    asyncio.run(live())


def test_feeds_of_the_api_are_added_replaced_and_deleted(directory: Path) -> None:
    async def live() -> None:
        feeds = Subscriptions(
            [Feed(name="c", url="http://127.0.0.1:1/")], FeedStore(directory), Around(MemorySets(), "x")
        )
        one = Feed(name="a", url="http://127.0.0.1:1/")
        assert (await feeds.add(one))[1] and not (await feeds.add(one))[1]
        for call, kind, code in (
            (feeds.add(Feed(name="a", url="http://127.0.0.1:2/")), Conflict, "feed_exists"),
            (feeds.add(Feed(name="b", url="http://127.0.0.1:2/", set="a")), Conflict, "set_managed"),
            (feeds.replace(Feed(name="c", url="http://127.0.0.1:2/")), Conflict, "feed_of_config"),
            (feeds.replace(Feed(name="z", url="http://127.0.0.1:2/")), NotFound, "feed_not_found"),
            (feeds.delete("c"), Conflict, "feed_of_config"),
            (feeds.delete("z"), NotFound, "feed_not_found"),
        ):
            with pytest.raises(kind) as caught:
                await call
            assert caught.value.code == code
        await feeds.replace(Feed(name="a", url="http://127.0.0.1:2/"))
        assert FeedStore(directory).load()[0]["a"].url == "http://127.0.0.1:2/"
        await feeds.delete("a")
        assert FeedStore(directory).load()[0] == {}

    asyncio.run(live())


def test_a_reload_changes_only_what_is_another(directory: Path) -> None:
    async def live() -> None:
        url = "http://127.0.0.1:1/"
        feeds = Subscriptions(
            [Feed(name="a", url=url), Feed(name="b", url=url)],
            FeedStore(directory),
            Around(MemorySets(), "x"),
        )
        await feeds.add(Feed(name="api", url=url))
        kept = feeds.get("a")
        await feeds.reload([Feed(name="a", url=url), Feed(name="c", url=url)])
        assert [(each.feed.name, each.origin) for each in feeds.all()] == [
            ("a", "config"), ("api", "api"), ("c", "config"),
        ]  # fmt: skip
        assert feeds.get("a") is kept

    asyncio.run(live())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"feeds":[{}],"states":{}}', b'{"feeds":[],"states":{"a":1}}']
)
def test_a_broken_state_is_put_aside(directory: Path, content: bytes) -> None:
    (directory / FILE).write_bytes(content)
    assert FeedStore(directory).load() == ({}, {})
    assert (directory / "feeds.broken").read_bytes() == content
    assert FeedStore(directory).load() == ({}, {})


def test_a_connection_that_the_kernel_forbids_names_the_units_setting() -> None:
    refused = httpx.ConnectError("no")
    refused.__cause__ = PermissionError(1, "Operation not permitted")
    assert "IPAddressAllow=any" in _hint(refused)
    assert _hint(httpx.ConnectError("no")) == ""
