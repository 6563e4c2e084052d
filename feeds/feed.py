"""One feed: its definition, how it went, when it is next.

Owns a refresh from the fetch to the set, and what a failure leaves: the last good list. It must not know of other
feeds.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import structlog

from feeds.errors import FeedFailed
from feeds.fetch import Validators
from feeds.reading import Read, read_feed
from feeds.screen import distinct, refuse_what_shrank
from feeds.sets import FEED_SOURCE, Applied, Sets
from feeds.state import FeedState
from firewall.address import Prefix
from firewall.address_list import PrefixColumns
from firewall.errors import FirewallError
from firewall.prefix_rows import prefixes_of_rows, rows_of
from firewall.settings import Feed

log = structlog.get_logger(__name__)

Origin = Literal["config", "api"]
FIRST_RETRY_S = 30.0
SAMPLE = 20


@dataclass(frozen=True)
class Around:
    """What all feeds share. `own`: this host's addresses; `clock`: seconds since 1970; `jitter`: 0.9 to 1.1, so that
    hosts do not ask together."""

    sets: Sets
    user_agent: str
    own: Callable[[], Collection[Prefix]] = tuple
    clock: Callable[[], float] = time.time
    jitter: Callable[[], float] = lambda: random.uniform(0.9, 1.1)


@dataclass(frozen=True)
class Preview:
    """What a refresh would do. `refusal`: why it would do nothing, None where it would."""

    read: Read | None
    added: int = 0
    removed: int = 0
    unchanged: int = 0
    sample_added: tuple[str, ...] = ()
    sample_removed: tuple[str, ...] = ()
    refusal: FeedFailed | None = None


class FollowedFeed:
    """`state` is replaced by what happens; whoever owns the feed saves it."""

    def __init__(self, feed: Feed, origin: Origin, state: FeedState, around: Around) -> None:
        self.feed, self.origin, self.state = feed, origin, state
        self.is_refreshing = False
        self._around = around
        self._lock = asyncio.Lock()
        self.due = time.monotonic() + self._first_delay_s()

    @property
    def source(self) -> str:
        return FEED_SOURCE + self.feed.name

    @property
    def next_refresh(self) -> float | None:
        """Seconds since 1970."""
        if not self.feed.enabled:
            return None
        return self._around.clock() + max(0.0, self.due - time.monotonic())

    def _first_delay_s(self) -> float:
        """At once, unless the last run of the service asked lately."""
        if self.state.last_success is None or self.state.fingerprint != fingerprint(self.feed):
            return 0.0
        wait = self.state.last_success + self.feed.refresh - self._around.clock()
        return min(max(0.0, wait), float(self.feed.refresh))

    async def refresh(self, force: bool = False) -> Applied | None:
        """None where the list has not changed. `force`: takes a list that shrank. Raises FeedFailed; then the set is
        as it was."""
        async with self._lock:
            self.is_refreshing = True
            try:
                applied = await self._refresh(force)
            except FeedFailed as failed:
                self._note_failure(failed)
                raise
            finally:
                self.is_refreshing = False
            self.due = time.monotonic() + self.feed.refresh * self._around.jitter()
            return applied

    async def claim(self) -> None:
        """Its set is there from now on, so that rules may name it before the first list has come. Raises
        FirewallError."""
        where = self.feed.file or without_password(self.feed.url or "")
        await self._around.sets.claim(self.feed.target, self.source, f"feed {self.feed.name}: {where}")

    async def _refresh(self, force: bool) -> Applied | None:
        try:
            await self.claim()
        except FirewallError as error:
            raise FeedFailed("refused", error.detail, error.hint) from None
        before = await self._size()
        read = await self._read(before, force)
        if read is None:
            self.state = self.state.went_well(self._around.clock())
            return None
        columns = read.kept.columns
        size = await asyncio.to_thread(distinct, [each.prefixes for each in columns])
        if not force:
            refuse_what_shrank(size, before, self.feed.max_shrink)
        try:
            applied = await self._around.sets.replace(self.feed.target, columns, self.source)
        except FirewallError as error:
            raise FeedFailed("refused", error.detail, error.hint) from None
        self._note_success(read, size, applied)
        return applied

    async def _size(self) -> int:
        try:
            return await self._around.sets.size(self.feed.target) or 0
        except FirewallError as error:
            raise FeedFailed("refused", error.detail, error.hint) from None

    async def _read(self, before: int, force: bool) -> Read | None:
        is_as_left = (
            before and before == self.state.entries and self.state.fingerprint == fingerprint(self.feed)
        )
        known = Validators(self.state.etag, self.state.last_modified)
        if not is_as_left or force:  # what is there is not what these validators stand for
            known = Validators()
        around = self._around
        return await read_feed(
            self.feed, known, around.user_agent, around.sets.never_drop(), around.clock, around.own
        )

    async def preview(self) -> Preview:
        try:
            read = await self._read(0, force=True)
            assert read is not None
            there = await self._around.sets.prefixes(self.feed.target)
        except FeedFailed as failed:
            return Preview(None, refusal=failed)
        found = await asyncio.to_thread(_compared, read, there)
        try:
            refuse_what_shrank(
                found.added + found.unchanged, found.removed + found.unchanged, self.feed.max_shrink
            )
        except FeedFailed as failed:
            return Preview(**{**vars(found), "refusal": failed})
        return found

    def _note_failure(self, failed: FeedFailed) -> None:
        self.state = self.state.refused(failed.reason, str(failed), self._around.clock())
        wait = min(float(self.feed.refresh), FIRST_RETRY_S * 2 ** min(self.state.failures - 1, 16))
        wait = max(wait * self._around.jitter(), min(failed.retry_after_s or 0.0, 86_400.0))
        self.due = time.monotonic() + wait
        log.warning(
            "feed not taken: the last good list stays",
            feed=self.feed.name,
            reason=failed.reason,
            detail=failed.detail,
            entries=self.state.entries,
            next_try_s=round(wait),
        )

    def _note_success(self, read: Read, size: int, applied: Applied) -> None:
        now = self._around.clock()
        self.state = self.state.went_well(
            now,
            last_change=now if applied.added or applied.removed else self.state.last_change,
            etag=read.validators.etag,
            last_modified=read.validators.last_modified,
            fingerprint=fingerprint(self.feed),
            format=read.found.format,
            entries=size,
            bad=read.found.bad,
            host_bits=read.found.host_bits,
            reserved=read.kept.reserved,
            own=read.kept.own,
            never_drop=read.kept.never_drop,
            told=list(read.kept.told),
        )
        log.info(
            "feed taken", feed=self.feed.name, entries=size, added=applied.added, removed=applied.removed
        )
        if read.kept.reserved or read.kept.own:
            done = "left out" if self.feed.reserved == "leave_out" else "kept, as the config says"
            log.warning(
                "the feed lists networks of one's own",
                feed=self.feed.name, reserved=read.kept.reserved, own=read.kept.own, done=done,
                first=", ".join(read.kept.told[:3]),
            )  # fmt: skip


def without_password(url: str) -> str:
    """As it may be shown."""
    return re.sub(r"^(https?://)[^/?#]*@", r"\1", url)


def fingerprint(feed: Feed) -> str:
    """Of what a list was read by: another one means that the same bytes may be something else."""
    kept = feed.model_dump_json(include={"url", "file", "set", "format", "reserved", "strict"})
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


def _compared(read: Read, there: Sequence[PrefixColumns]) -> Preview:
    added = removed = unchanged = 0
    come: list[str] = []
    gone: list[str] = []
    for version in (4, 6):
        wanted = rows_of([each.prefixes for each in read.kept.columns], version)
        present = rows_of(there, version)
        new, old = np.setdiff1d(wanted, present), np.setdiff1d(present, wanted)
        added += len(new)
        removed += len(old)
        unchanged += len(wanted) - len(new)
        come += map(str, prefixes_of_rows(new[:SAMPLE], version))
        gone += map(str, prefixes_of_rows(old[:SAMPLE], version))
    return Preview(read, added, removed, unchanged, tuple(come[:SAMPLE]), tuple(gone[:SAMPLE]))
