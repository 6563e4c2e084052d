"""What rules have counted: in the maps, saved, owed, and since somebody reset them.

Owns adding these up for many rules at once, and which rules counted nothing for long. Changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address_layers import Layers
from firewall.addresses import address_keys
from firewall.datapath import Key
from firewall.hits import NO_HITS, Hits
from firewall.in_force import InForce
from firewall.ruleset import is_policy
from firewall.store import Record
from firewall.view import RuleQuery

_MANY = 16_384  # entries, of which the sum is kept for a moment
_SUMMED_S = 1.0
_KEPT_S = 60.0  # a list of unused rules, for its further pages

Handles = npt.NDArray[np.int64]


class _Summed(NamedTuple):
    """Hits by handle that are good until a moment, if the layers are these."""

    layers: Layers
    until: float
    hits: Mapping[int, Hits]


class Counts(InForce):
    """Every method may be called from any thread."""

    _listed: tuple[RuleQuery, int, float, Handles] | None = None
    _summed: _Summed | None = None

    def _counted(self, records: Sequence[Record]) -> list[Hits]:
        """Since they were made, or reset."""
        with self._lock:
            totals = self._totals(records)
            return [
                total.since(self._resets.get(each.handle))
                for each, total in zip(records, totals, strict=True)
            ]

    def _totals(self, records: Sequence[Record]) -> list[Hits]:
        """Since they were made. Under the lock: hits on their way from the maps to the store are counted once."""
        saved = self._store.hits([each.handle for each in records])
        live = self._live(records)
        return [
            saved.get(each.handle, NO_HITS)
            .plus(live.get(each.handle, NO_HITS))
            .plus(self._owed.get(each.handle, NO_HITS))
            for each in records
        ]

    def _live(self, records: Sequence[Record]) -> dict[int, Hits]:
        """What the maps hold, by handle."""
        if not self._is_started:
            return {}
        enabled = [each for each in records if each.rule.enabled]
        policy = [
            compiled
            for each in enabled
            if is_policy(each) and (compiled := self._ruleset.policy_rules.get(each.handle)) is not None
        ]
        slots = [each.slot for each in policy]
        hits = dict(
            zip(
                (each.handle for each in policy),
                self._kernel.policy_hits(slots) if slots else (),
                strict=True,
            )
        )
        places = self._won(enabled)
        counted = self._kernel.address_hits([key for key, _ in places]) if places else ()
        for (_, handle), each in zip(places, counted, strict=True):
            hits[handle] = hits.get(handle, NO_HITS).plus(each)
        return hits | self._of_sets({each.handle for each in enabled if _names_sets(each)})

    def _of_sets(self, handles: set[int]) -> dict[int, Hits]:
        """Of address rules that name sets, all their entries; for a moment as they were, where those are many."""
        layers, now = self._ruleset.addresses.layers, time.monotonic()
        kept = self._summed
        if kept is not None and (kept.layers is not layers or now > kept.until):
            kept = self._summed = None
        asked = handles - kept.hits.keys() if kept is not None else handles
        if not asked:
            return {handle: kept.hits[handle] for handle in handles} if kept is not None else {}
        entries = self._ruleset.addresses.won_by(handles)
        hits = self._kernel.hits_of(entries)
        found = {handle: hits.get(handle, NO_HITS) for handle in handles}
        if sum(map(len, entries)) > _MANY:
            self._summed = _Summed(layers, now + _SUMMED_S, found)
        return found

    def _won(self, records: Sequence[Record]) -> list[tuple[Key, int]]:
        """The entries of the address tables that are these rules', with their handles."""
        keys = {
            key: None
            for each in records
            if not is_policy(each) and not _names_sets(each)
            for key in address_keys(each.rule)
        }
        handles = {each.handle for each in records}
        winners = self._ruleset.addresses.winners_at(list(keys))
        return [(key, entry.handle) for key, entry in winners if entry.handle in handles]

    def _unused(self, query: RuleQuery, is_first: bool) -> Handles:
        """Sorted handles of enabled rules that fit a query, are as old as it says (or were reset then) and were not hit
        since. `is_first`: looks anew; further pages are of the same list while no rule changes."""
        listed, now = self._listed, time.monotonic()
        revision = self._store.revision
        is_kept = listed is not None and listed[:2] == (query, revision) and now - listed[2] < _KEPT_S
        if listed is not None and is_kept and not is_first:
            return listed[3]
        moment = self._clock() - (query.unused_for_s or 0)
        with self._lock:
            hit = [self._store.handles_hit_since(moment), *self._hit_since(moment)]
            hit.append(_array(handle for handle, each in self._resets.items() if each.at > moment))
        handles = self._store.enabled_since(query, moment)
        handles = handles[~np.isin(handles, np.concatenate(hit))]
        self._listed = (query, revision, now, handles)
        return handles

    def _hit_since(self, moment: float) -> list[Handles]:
        """Handles of rules, as the maps say and what is owed."""
        parts = [_array(handle for handle, each in self._owed.items() if each.last_hit >= moment)]
        if self._is_started:
            parts.append(self._kernel.address_rules_hit_since(moment).astype(np.int64))
            policy = list(self._ruleset.policy_rules.values())
            hits = self._kernel.policy_hits([each.slot for each in policy]) if policy else []
            parts.append(
                _array(each.handle for each, hit in zip(policy, hits, strict=True) if hit.last_hit >= moment)
            )
        return parts


def _names_sets(record: Record) -> bool:
    return bool(record.rule.sets) and not is_policy(record)


def _array(handles: Iterable[int]) -> Handles:
    return np.fromiter(handles, np.int64)
