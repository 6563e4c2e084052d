"""Entries of sets whose time comes: none of them is met from that moment on, however many they are.

Owns the order, and the parts in which it goes, so that nobody waits long for the lock. Where many expire together, the
kernel gets them ready in the seconds before; when their moment comes, all of them fall by one store. Then, and where
they are few at once, they are taken out in two rounds: from memory and kernel, and only then from the store, which
takes longer and where they are as good as gone already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import structlog

from firewall.address import BITS
from firewall.address_index import encoded
from firewall.audited import FEW
from firewall.commit import Commits
from firewall.datapath import Edit, Entries
from firewall.departing import Departure
from firewall.set_keys import NO_KEYS, SetDelta, SetKeys, delta, joined
from firewall.set_reads import SetReads
from firewall.set_store import Expired

log = structlog.get_logger()

_EXPIRE_AT_ONCE = 16_384
_ALL = 1 << 40
_AHEAD_S = 20.0  # before their moment it begins to get ready: a million take some seconds
_TOGETHER_S = 0.5  # what expires within it falls with the last of it


class SetExpiry(Commits, SetReads):
    """`_taken_out`: entries whose time has come, and that are gone but for the store, part by part. `_is_surveyed`: of
    what expires now the kernel was asked which entries were hit; `_is_surveying`: it has not seen all yet."""

    _taken_out: tuple[Expired, ...] = ()
    _is_surveyed = _is_surveying = False

    def _expire_entries(self) -> None:
        """The next part of what is to be done; the others at once after."""
        now = self._clock()
        departure = self._departure = self._departure or self._next_departure(now)
        if departure is not None and not departure.has_fallen:
            self._get_ready(departure, now)
            if now >= departure.until:
                return
        if self._is_surveying:
            self._is_surveying = not self._kernel.survey()
        else:
            self._expire_what_is_due(now)

    # -- many that go together

    @property
    def _is_getting_ready(self) -> bool:
        return self._departure is not None and not self._departure.is_ready

    def _next_departure(self, now: float) -> Departure | None:
        """What is overdue falls as soon as it can."""
        nth = self._set_store.nth_expiry(_EXPIRE_AT_ONCE)
        if nth is None or nth > now + _AHEAD_S + _TOGETHER_S:
            return None
        if nth <= now and not self._taken_out:
            return Departure(now, None)
        found = self._set_store.burst(now, now + _AHEAD_S, _EXPIRE_AT_ONCE, _TOGETHER_S)
        return None if found is None else Departure(found.last, (found.first, 0, b""))

    def _get_ready(self, departure: Departure, now: float) -> None:
        if not departure.is_read:
            self._doom_part(departure)
        elif not departure.is_ready:
            departure.is_ready = self._kernel.are_doomed()
        elif now >= departure.until:
            self._kernel.fall()
            departure.has_fallen = True
            log.info("entries have fallen", late_s=round(self._clock() - departure.until, 3))
            if self._is_surveyed:  # which did not see what these counted
                self._is_surveyed = self._is_surveying = False
                self._kernel.forget_survey()
            if departure.is_in_policy:  # which is compiled anew each time
                self._take_out_fallen(departure, departure.parts)

    def _doom_part(self, departure: Departure) -> None:
        some = self._set_store.expired(departure.until, _EXPIRE_AT_ONCE, departure.last)
        if some.count:
            self._doom(some)
            departure.last = some.last
            departure.parts.append(some)
            departure.is_in_policy |= self._is_in_policy(some)
        departure.is_read = some.count < _EXPIRE_AT_ONCE

    def _doom(self, some: Expired) -> None:
        """Those behind which nothing else stands."""
        addresses, deltas = self._ruleset.addresses, self._deltas_of(some.keys)
        sets = {**self._ruleset.sets, **{name: each.after for name, each in deltas.items()}}
        plan = addresses.plan((), (), sets=sets, deltas=deltas)
        self._kernel.doom([*plan.layers.gone, *_that_go(plan.edits)])

    def _take_out_fallen(self, departure: Departure, parts: Sequence[Expired]) -> None:
        """The first parts, but for what has another time since."""
        names, spared = self._set_names(), departure.spared
        keys = {
            number: joined(part.keys.get(number, NO_KEYS) for part in parts).minus(spared.get(name, NO_KEYS))
            for number, name in names.items()
        }
        self._take_out(keys)
        self._taken_out = (*self._taken_out, *parts)
        del departure.parts[: len(parts)]

    def _take_out_first(self, keys: SetKeys | None) -> None:
        departure = self._departure
        if departure is None or not departure.has_fallen or not departure.parts:
            return
        if keys is None:
            self._take_out_fallen(departure, departure.parts)
            return
        fallen = {
            number: joined(part.keys.get(number, NO_KEYS).common(keys) for part in departure.parts).minus(
                departure.spared.get(name, NO_KEYS)
            )
            for number, name in self._set_names().items()
        }
        if any(map(len, fallen.values())):
            self._take_out(fallen)

    # -- what is due

    def _expire_what_is_due(self, now: float) -> None:
        departure = self._departure
        if departure is not None and departure.has_fallen and departure.parts:
            if self._is_surveyed:
                first = departure.parts if departure.is_in_policy else departure.parts[:1]
                self._take_out_fallen(departure, first)
            else:
                self._is_surveying = self._is_surveyed = True
            return
        after = self._taken_out[-1].last if self._taken_out else None
        expired = self._set_store.expired(now, _EXPIRE_AT_ONCE, after)
        if not expired.count:
            self._end_departure()
            self._delete_taken_out()
        elif expired.count < _EXPIRE_AT_ONCE or self._is_surveyed:
            self._take_out(expired.keys)
            self._taken_out = (*self._taken_out, expired)
        elif self._is_in_policy(expired):
            every = self._set_store.expired(now, _ALL, after)
            self._take_out(every.keys)
            self._taken_out = (*self._taken_out, every)
        else:
            self._is_surveying = self._is_surveyed = True

    def _end_departure(self) -> None:
        if self._has_fallen:
            self._kernel.forget_doomed()
            self._departure = None

    def _take_out(self, keys: Mapping[int, SetKeys]) -> None:
        """Of memory and kernel."""
        with self._changing_alone():
            deltas = self._deltas_of(keys)
            plan = self._ruleset.plan((), (), self._interfaces.protected(), deltas=deltas, at_once=False)
            self._reserve_for(plan)
            self._owe(self._apply(plan.change))
            self._ruleset.commit(plan)

    def _deltas_of(self, keys: Mapping[int, SetKeys]) -> dict[str, SetDelta]:
        """Of what is still in the sets."""
        names, sets = self._set_names(), self._ruleset.sets
        gone = {name: keys[number].common(sets[name]) for number, name in names.items() if number in keys}
        return {name: delta(sets[name], NO_KEYS, keys) for name, keys in gone.items() if len(keys)}

    def _delete_taken_out(self) -> None:
        """The first part of those that were taken out, but for what came again since."""
        if not self._taken_out:
            return
        expired = self._taken_out[0]
        with self._changing_alone():
            names = {number: name for number, name in self._set_names().items() if number in expired.keys}
            sets = self._ruleset.sets

            def write() -> None:
                for number, name in names.items():
                    gone = expired.keys[number].minus(sets[name])
                    self._set_store.delete_entries(number, gone)
                    self._audit_entries("set.expire", name, SetDelta(gone, NO_KEYS, NO_KEYS, gone))

            self._perform(self._ruleset.plan((), (), self._interfaces.protected()), write, set(), [])
        self._taken_out = self._taken_out[1:]
        if not self._taken_out:
            self._is_surveyed = False
            self._kernel.forget_survey()
        log.info("entries expired", count=expired.count, sets=sorted(names.values()))

    def _set_names(self) -> dict[int, str]:
        return {each.number: each.name for each in self._set_store.sets()}

    def _is_in_policy(self, expired: Expired) -> bool:
        names = self._set_names()
        expiring = {names[number] for number in expired.keys}
        return any(not expiring.isdisjoint(each.rule.sets) for each in self._ruleset.policy_rules.values())

    def _audit_entries(self, action: str, name: str, change: SetDelta, **summary: object) -> None:
        """Few entries by name, many by number and digest."""
        if len(change.come) + len(change.gone) <= FEW:
            gone, come = change.gone.texts(), change.come.texts()
            self._audit(action, name, gone or None, come or None, **summary)
            return
        digest = sha256()
        for sign, keys in ((b"-", change.gone), (b"+", change.come)):
            digest.update(sign + keys.four.tobytes() + keys.six.tobytes())
        told = {
            "added": len(change.come),
            "removed": len(change.gone),
            "digest": f"sha256:{digest.hexdigest()}",
        }
        self._audit(action, name, None, None, **told, **summary)


def _that_go(edits: Sequence[Edit]) -> list[Entries]:
    pairs = [(edit.key, edit.old) for edit in edits if edit.old is not None and edit.new is None]
    return [encoded(version, (pair for pair in pairs if pair[0].version == version)) for version in BITS]
