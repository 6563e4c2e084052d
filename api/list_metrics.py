"""Metrics of lists from outside: feeds and CrowdSec.

Owns their names. The series are as many as feeds, which are 64 at most, times the reasons of refusals.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from api.running import Running
from feeds.crowdsec import STATES, Bouncer
from feeds.decisions import SKIPPED
from feeds.errors import REASONS
from feeds.subscriptions import Subscriptions


def of_lists(running: Running) -> Iterator[Metric]:
    yield from _of_feeds(running.feeds)
    yield from _of_crowdsec(running.crowdsec)


def _of_feeds(feeds: Subscriptions | None) -> Iterator[Metric]:
    entries = GaugeMetricFamily(
        "ebpf_fw_feed_entries", "Entries of a feed's last good list", labels=("feed",)
    )
    failing = GaugeMetricFamily(
        "ebpf_fw_feed_failing", "1 while a feed's last refresh was refused or failed", labels=("feed",)
    )
    success = GaugeMetricFamily(
        "ebpf_fw_feed_last_success_timestamp_seconds", "When a feed's list was last good", labels=("feed",)
    )
    refused = CounterMetricFamily(
        "ebpf_fw_feed_refusals", "Refreshes that were refused or failed", labels=("feed", "reason")
    )
    for each in feeds.all() if feeds is not None else ():
        name, state = each.feed.name, each.state
        entries.add_metric((name,), state.entries)
        failing.add_metric((name,), state.failures > 0)
        if state.last_success is not None:
            success.add_metric((name,), state.last_success)
        for reason in REASONS:
            refused.add_metric((name, reason), state.refusals.get(reason, 0))
    yield from (entries, failing, success, refused)


def _of_crowdsec(bouncer: Bouncer | None) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "ebpf_fw_crowdsec_state", "1 for the state that the bouncer is in", labels=("state",)
    )
    decisions = GaugeMetricFamily("ebpf_fw_crowdsec_decisions", "Decisions that hold")
    addresses = GaugeMetricFamily("ebpf_fw_crowdsec_addresses", "Addresses that these ban")
    skipped = GaugeMetricFamily(
        "ebpf_fw_crowdsec_skipped_decisions", "Decisions that make no entry", labels=("reason",)
    )
    pull = GaugeMetricFamily(
        "ebpf_fw_crowdsec_last_pull_timestamp_seconds", "When the local API last answered"
    )
    if bouncer is not None:
        for state in STATES:
            states.add_metric((state,), bouncer.progress.state == state)
        decisions.add_metric((), len(bouncer.decisions))
        addresses.add_metric((), bouncer.decisions.addresses)
        for reason in SKIPPED:
            skipped.add_metric((reason,), bouncer.decisions.skipped[reason])
        if bouncer.progress.last_pull is not None:
            pull.add_metric((), bouncer.progress.last_pull)
    yield from (states, decisions, addresses, skipped, pull)
