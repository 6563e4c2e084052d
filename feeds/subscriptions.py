"""All feeds: which there are, by the config and by the API, and the task that refreshes each in time.

Owns their life in the event loop and their state on disk. Everything here is called in that loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

import structlog

from feeds.errors import FeedFailed
from feeds.feed import Around, FollowedFeed, Origin, Preview
from feeds.sets import Applied
from feeds.state import FeedState, FeedStore
from firewall.errors import Conflict, FirewallError, NotFound, StoreFailed
from firewall.settings import FEEDS_MAX, Feed

log = structlog.get_logger(__name__)

AT_ONCE = 2  # lists that are read together: each may be in memory whole
_LONGEST_SLEEP_S = 60.0


class Subscriptions:
    def __init__(
        self, configured: Iterable[Feed], store: FeedStore, around: Around, others: Collection[str] = ()
    ) -> None:
        """`others`: sources of sets that are not feeds."""
        self.others = set(others)
        self._store, self.around = store, around
        self._saving = asyncio.Lock()
        self._reading = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_started = False
        made, self._states = store.load()
        self._feeds: dict[str, FollowedFeed] = {}
        configured = list(configured)
        taken = {each.name for each in configured} | {each.target for each in configured}
        for feed in configured:
            self._put(feed, "config")
        for feed in made.values():
            if feed.name in taken or feed.target in taken:
                log.warning("the config has the place of a feed that the API made", feed=feed.name)
            else:
                self._put(feed, "api")

    def _put(self, feed: Feed, origin: Origin) -> FollowedFeed:
        state = self._states.get(feed.name, FeedState())
        followed = FollowedFeed(feed, origin, state, self.around)
        self._feeds[feed.name] = followed
        if self._is_started:
            self._follow(followed)
        return followed

    # Life

    def start(self) -> None:
        self._is_started = True
        for followed in self._feeds.values():
            self._follow(followed)

    def _follow(self, followed: FollowedFeed) -> None:
        if followed.feed.enabled:
            name = followed.feed.name
            self._tasks[name] = asyncio.create_task(self._refresh_in_time(followed), name=f"feed {name}")

    async def claim(self) -> None:
        """Sets of the feeds, so that rules may name them at once. What cannot be claimed is told by its refresh."""
        for followed in self._feeds.values():
            with suppress(FirewallError):
                await followed.claim()

    async def _refresh_in_time(self, followed: FollowedFeed) -> None:
        while True:
            wait = followed.due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(min(wait, _LONGEST_SLEEP_S))
                continue
            try:
                await self._refresh(followed, force=False)
            except FeedFailed:
                continue  # noted, and due again later
            except Exception:
                log.exception("a feed failed", feed=followed.feed.name)
                followed.due = time.monotonic() + _LONGEST_SLEEP_S

    async def close(self) -> None:
        self._is_started = False
        for name in list(self._tasks):
            await self._leave(name)
        await self._save()

    async def _leave(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def reload(self, configured: Iterable[Feed]) -> None:
        """Feeds of the config as they are now. Those that are as before go on as if nothing had been."""
        wanted = {each.name: each for each in configured}
        for name, followed in list(self._feeds.items()):
            if followed.origin == "config" and wanted.get(name) != followed.feed:
                await self._leave(name)
                del self._feeds[name]
        for name, feed in wanted.items():
            there = self._feeds.get(name)
            if there is None or there.origin == "api":
                await self._leave(name)
                self._put(feed, "config")
        await self._save()
        await self.claim()

    # What is asked

    def all(self) -> list[FollowedFeed]:
        return [self._feeds[name] for name in sorted(self._feeds)]

    def get(self, name: str) -> FollowedFeed:
        """Raises NotFound."""
        try:
            return self._feeds[name]
        except KeyError:
            raise NotFound(f"there is no feed {name!r}", "ebpf-fw feed list", code="feed_not_found") from None

    async def refresh(self, name: str, force: bool = False) -> Applied | None:
        """Raises NotFound, FeedFailed."""
        return await self._refresh(self.get(name), force)

    async def _refresh(self, followed: FollowedFeed, force: bool) -> Applied | None:
        try:
            async with self._reading:
                return await followed.refresh(force)
        finally:
            if self._feeds.get(followed.feed.name) is followed:
                await self._save()

    async def preview(self, name: str) -> Preview:
        followed = self.get(name)
        async with self._reading:
            return await followed.preview()

    async def add(self, feed: Feed) -> tuple[FollowedFeed, bool]:
        """The feed, and whether it is new. Raises Conflict, StoreFailed."""
        there = self._feeds.get(feed.name)
        if there is not None:
            if there.feed == feed:
                return there, False
            detail = f"there is another feed {feed.name!r}"
            raise Conflict(detail, "PUT replaces one that the API made", code="feed_exists")
        if len(self._feeds) >= FEEDS_MAX:
            raise Conflict(f"there are {FEEDS_MAX} feeds, the most that there may be", code="too_many_feeds")
        return await self._made(feed), True

    async def replace(self, feed: Feed) -> FollowedFeed:
        """Raises NotFound, Conflict."""
        self._refuse_configured(self.get(feed.name))
        return await self._made(feed)

    async def _made(self, feed: Feed) -> FollowedFeed:
        """Durable when it returns. Raises FirewallError."""
        for other in self._feeds.values():
            if other.feed.name != feed.name and other.feed.target == feed.target:
                detail = f"the feed {other.feed.name!r} fills the set {feed.target!r}"
                raise Conflict(detail, "a set belongs to one feed", code="set_managed")
        before = self._feeds.get(feed.name)
        await FollowedFeed(feed, "api", FeedState(), self.around).claim()
        await self._leave(feed.name)
        followed = self._put(feed, "api")
        try:
            await self._save_or_raise()
        except StoreFailed:
            await self._leave(feed.name)
            del self._feeds[feed.name]
            if before is not None:
                self._put(before.feed, before.origin)
            raise
        return followed

    async def delete(self, name: str) -> None:
        """Its set and what is in it stay, and are nobody's. Raises NotFound, Conflict, StoreFailed."""
        followed = self.get(name)
        self._refuse_configured(followed)
        await self._leave(name)
        del self._feeds[name]
        state = self._states.pop(name, None)
        try:
            await self._save_or_raise()
        except StoreFailed:
            if state is not None:
                self._states[name] = state
            self._put(followed.feed, "api")
            raise
        await self.release()

    @property
    def sources(self) -> set[str]:
        return {each.source for each in self._feeds.values()}

    async def release(self) -> None:
        """Sets of feeds that are no more may be changed by anybody."""
        kept = self.sources | self.others
        for name in await self.around.sets.release(kept):
            log.info("a set is nobody's any more: its feed is gone", set=name)

    def _refuse_configured(self, followed: FollowedFeed) -> None:
        if followed.origin == "config":
            detail = f"the feed {followed.feed.name!r} is the config's"
            raise Conflict(
                detail,
                "change [[feeds]] in the config, then: systemctl reload ebpf-fw",
                code="feed_of_config",
            )

    async def _save(self) -> None:
        self._states.update({name: each.state for name, each in self._feeds.items()})
        with suppress(StoreFailed):  # told in the log; the next refresh tries again
            await self._save_or_raise()

    async def _save_or_raise(self) -> None:
        async with self._saving:
            made = {name: each.feed for name, each in self._feeds.items() if each.origin == "api"}
            states = {name: each.state for name, each in self._feeds.items()}
            try:
                await asyncio.to_thread(self._store.save, made, states)
            except OSError as error:
                log.error("the state of feeds cannot be saved", error=str(error))
                raise StoreFailed(f"the state of feeds cannot be saved: {error.strerror}") from None
