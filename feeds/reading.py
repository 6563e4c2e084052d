"""A feed's list, fetched, read and looked at: everything that comes before a set is changed.

Owns the order: fetch part by part, read in a thread, refuse what is broken, leave out what would hurt. The event loop
waits for none of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from feeds.errors import FeedFailed
from feeds.fetch import Source, Validators, fetching
from feeds.screen import Screened, refuse_what_is_broken, screened
from firewall.address import Prefix
from firewall.errors import FirewallError, InvalidInput
from firewall.lists.collector import Manner, ReadList
from firewall.lists.reading import ListReader
from firewall.settings import Feed


@dataclass(frozen=True)
class Read:
    """`found`: as the list has it; `kept`: what may go into the set."""

    found: ReadList
    kept: Screened
    validators: Validators


async def read_feed(
    feed: Feed,
    known: Validators,
    user_agent: str,
    never_drop: Sequence[Prefix],
    clock: Callable[[], float],
    own: Callable[[], Collection[Prefix]],
) -> Read | None:
    """None where it has not changed. Raises FeedFailed."""
    source = Source(feed.url, feed.file, float(feed.timeout), feed.max_bytes, user_agent)
    async with fetching(source, known) as fetch:
        if fetch.is_unchanged:
            return None
        reader = ListReader(Manner(clock(), strict=feed.strict), feed.format, fetch.media_type, fetch.name)
        try:
            async for part in fetch.parts():
                await asyncio.to_thread(reader.feed, part)
            found = await asyncio.to_thread(reader.end)
        except InvalidInput as error:
            raise FeedFailed("broken", error.detail, error.hint) from None
    refuse_what_is_broken(found)
    try:
        mine = await asyncio.to_thread(own)
    except FirewallError as error:
        raise FeedFailed("refused", error.detail, error.hint) from None
    kept = await asyncio.to_thread(screened, found.columns, mine, never_drop, feed.reserved == "keep")
    if not kept.entries:
        raise FeedFailed("empty", "all entries of the list are reserved networks or this host's own")
    return Read(found, kept, fetch.validators)
