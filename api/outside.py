"""Lists from outside in the life of the service: feeds and CrowdSec begin when it has started and end before it does.

Owns their place in that order, and what a reload changes of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from api import reach
from api.feed_sets import FirewallSets
from api.log import fields_of
from api.running import Running
from api.wiring import version
from feeds.crowdsec import Bouncer
from feeds.feed import Around
from feeds.sets import CROWDSEC_SOURCE
from feeds.state import FeedStore
from feeds.subscriptions import Subscriptions
from firewall.errors import FirewallError
from firewall.kernel.own_addresses import own_addresses
from firewall.settings import CrowdSec, Settings

log = structlog.get_logger(__name__)


def user_agent() -> str:
    """CrowdSec takes none but name/version."""
    return f"ebpf-fw/{version()}"


async def begin(running: Running, settings: Settings) -> None:
    around = Around(FirewallSets(running), user_agent(), own_addresses)
    store = FeedStore(settings.state.directory)
    running.feeds = Subscriptions(settings.feeds, store, around, _others(settings))
    await _release(running.feeds)
    await running.feeds.claim()
    running.feeds.start()
    _begin_crowdsec(running, settings.crowdsec, around)
    await _warn_if_kept_from(running, settings)


async def follow_config(running: Running, settings: Settings) -> None:
    """After a reload. What is as before goes on as if nothing had been."""
    if running.feeds is None:
        return
    running.feeds.others = set(_others(settings))
    await running.feeds.reload(settings.feeds)
    there = running.crowdsec.settings if running.crowdsec else CrowdSec()
    if there != settings.crowdsec:
        await _end_crowdsec(running)
        _begin_crowdsec(running, settings.crowdsec, running.feeds.around)
    await _release(running.feeds)
    await _warn_if_kept_from(running, settings)


async def end(running: Running) -> None:
    await _end_crowdsec(running)
    if running.feeds is not None:
        await running.feeds.close()


def _begin_crowdsec(running: Running, settings: CrowdSec, around: Around) -> None:
    if settings.url is not None:
        running.crowdsec = Bouncer(settings, around)
        running.crowdsec.start()


async def _end_crowdsec(running: Running) -> None:
    if running.crowdsec is not None:
        await running.crowdsec.close()
        running.crowdsec = None


async def _warn_if_kept_from(running: Running, settings: Settings) -> None:
    assert running.feeds is not None
    urls = [each.feed.url for each in running.feeds.all() if each.feed.url is not None]
    urls += [settings.crowdsec.url] if settings.crowdsec.url is not None else []
    await asyncio.to_thread(reach.warn_if_kept_from, urls)


def _others(settings: Settings) -> Collection[str]:
    return () if settings.crowdsec.url is None else (CROWDSEC_SOURCE,)


async def _release(feeds: Subscriptions) -> None:
    try:
        await feeds.release()
    except FirewallError as error:
        log.error("sets of feeds that are gone could not be given back", **fields_of(error))
