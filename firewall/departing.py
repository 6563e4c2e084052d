"""Entries of sets that expire at one moment, by the million: the kernel gets them ready before, and lets all of them
fall at that moment (firewall.datapath, Kernel.doom).

Owns that they fall only where nothing else stands behind them: whoever changes something at one of their prefixes
before has it spared, and it goes one by one like any other; after, what has fallen there is taken out first. Which
they are and when is firewall.set_expiry's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from firewall.address import BITS
from firewall.address_entries import Key
from firewall.address_index import Keys, encode, encoded, key_fields, no_entries
from firewall.address_layers import Layers
from firewall.cautious import Cautious
from firewall.layout import C
from firewall.ruleset import RulesetPlan
from firewall.set_keys import NO_KEYS, SetDelta, SetKeys, distinct, joined, scoped
from firewall.set_store import Expired, Row

_FEW = 256  # entries that are looked up one by one
_MANY = 32_768  # after which all is begun anew


@dataclass
class Departure:
    """`until`: the moment at which they expire, the last of them; seconds since 1970. `last`: the row that was read
    last; `parts`: what was read, and is in memory still. `is_read`, `is_ready`: whether all were, and whether the
    kernel has all of them ready. `is_in_policy`: a rule with more fields names a set of them. `spared`: by name of the
    set, keys that have another time since."""

    until: float
    last: Row | None
    parts: list[Expired] = field(default_factory=list)
    is_read: bool = False
    is_ready: bool = False
    is_in_policy: bool = False
    has_fallen: bool = False
    spared: dict[str, SetKeys] = field(default_factory=dict)

    def spare(self, name: str, keys: SetKeys) -> None:
        self.spared[name] = joined((self.spared.get(name, NO_KEYS), keys))


class Departing(Cautious):
    """`_departure`: what is under way, None most of the time."""

    _departure: Departure | None = None

    @property
    def _has_fallen(self) -> bool:
        """Whether memory has entries that packets do not meet any more."""
        return self._departure is not None and self._departure.has_fallen

    def _take_out_first(self, keys: SetKeys | None) -> None:
        """Before a change at these prefixes, None for any: what has fallen there is taken out, or the change would
        bring it back for as long as memory has it. (firewall.set_expiry does it.)"""

    def _spare_touched(self, plan: RulesetPlan, before: Layers) -> None:
        """Where a change was made that memory, store and kernel have by now. `before`: the layers before it."""
        if self._departure is None:
            return
        if not before.has_rules_of(self._ruleset.addresses.layers):
            self._spare_all()
            return
        for name, change in plan.deltas.items():
            if len(change.come):
                self._departure.spare(name, change.come)
        for version in BITS:
            for keys in _touched(version, plan):
                self._spare(version, keys)

    def _spare_keys(self, name: str, keys: SetKeys) -> None:
        """Entries of a set whose time is another now."""
        if self._departure is None:
            return
        if len(keys) > _MANY:
            self._spare_all()
        else:
            self._departure.spare(name, keys)
            for version in BITS:
                for each in _in_all_lists(version, keys.of(version)):
                    self._spare(version, each)

    def _spare(self, version: int, keys: Keys) -> None:
        """Sorted keys."""
        addresses = self._ruleset.addresses
        if len(keys) > _FEW:
            self._kernel.spare([addresses.find(version, keys)])
        elif len(keys):
            few = [Key(version, *each) for each in zip(*key_fields(version, keys), strict=True)]
            self._kernel.spare([encoded(version, addresses.winners_at(few))])

    def _spare_all(self) -> None:
        """What still expires then is found anew."""
        if self._departure is not None:
            self._kernel.spare([self._ruleset.addresses.winners(version) for version in BITS])
            self._kernel.forget_doomed()
            self._departure = None


def _touched(version: int, plan: RulesetPlan) -> Iterator[Keys]:
    """Sorted keys at which another rule or set stands than before; those that went are gone anyway."""
    made = plan.addresses
    few = [encode(key) for key in made.entries if key.version == version]
    if few:
        yield np.sort(np.array(few, no_entries(version).keys.dtype))
    layers = made.layers
    columns = [*made.come, *made.joining, *layers.come, *layers.hidden, *layers.revealed]
    columns += [after for _, after in layers.changed]
    yield from (each.keys for each in columns if each.version == version)
    yield from _of_sets(version, plan.deltas)


def _of_sets(version: int, deltas: Mapping[str, SetDelta]) -> Iterator[Keys]:
    for change in deltas.values():
        keys = distinct(np.concatenate([change.come.of(version), change.gone.of(version)]))
        yield from _in_all_lists(version, keys)


def _in_all_lists(version: int, keys: Keys) -> Iterator[Keys]:
    if len(keys):
        yield from (scoped(version, keys, scope) for scope in range(C["ADDRESS_SCOPE_COUNT"]))
