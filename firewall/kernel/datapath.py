"""Performs changes on the pinned maps, so that every packet is judged by the rules before or after, whole.

Owns the order of writes. An address entry is written before the length that leads to it and deleted after
(its bits in the filter are address_table.py's); more than one edit becomes visible by one store, the epoch
(bpf/layout.h, struct address_entry); what only packets of the old epoch could need is cleared away once none
of them is left (settle).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys, decoded, encoded, no_entries, sorted_entries
from firewall.datapath import Change, Edit, Entries, Entry, Image, Key, Occupancy
from firewall.errors import FirewallError
from firewall.hits import NO_HITS, Hits
from firewall.kernel.address_filter import AddressFilter
from firewall.kernel.address_rows import Mask
from firewall.kernel.address_table import AddressTable
from firewall.kernel.bpf import Records
from firewall.kernel.clock import tick_to_wall, wall_to_tick
from firewall.kernel.departure import Departure
from firewall.kernel.grace import GracePeriod, listed_cpus
from firewall.kernel.interface_counters import InterfaceCounters
from firewall.kernel.keys import (
    encoded_keys,
    entries_key_records,
    entry_records,
    key_records,
    many_entry_records,
)
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.named_maps import clear_counters, read_counters, read_named
from firewall.kernel.occupancy import read_occupancy, write_occupancy
from firewall.kernel.parts import Parts
from firewall.kernel.policy_maps import Packed, pack, write_policy
from firewall.layout import ADDRESS_ENTRY, RANK_NONE, RULE_COUNTER, C
from firewall.named_sets import Counters, CountingSet
from firewall.policy import Policy
from firewall.set_keys import is_in

VERSIONS = (4, 6)
_FEW_LOOKUPS = 65_536
P = ParamSpec("P")
T = TypeVar("T")


class Hit(NamedTuple):
    """Of many entries those that were hit: their rows, and what the table holds."""

    rows: npt.NDArray[np.int64]
    records: Records

    def only(self, mask: npt.NDArray[np.bool_]) -> Hit:
        return Hit(self.rows[mask], self.records[mask])


def _lets_go(
    method: Callable[Concatenate[KernelDatapath, P], T],
) -> Callable[Concatenate[KernelDatapath, P], T]:
    """Of memory that tables mapped for what they were asked."""

    @wraps(method)
    def wrapped(self: KernelDatapath, /, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return method(self, *arguments, **named)
        finally:
            self._let_go()

    return wrapped


class _Survey(NamedTuple):
    """Which entries were hit: `parts` are those of the tables that are still to be seen, `found` the keys so far, and
    `hit` all of them, sorted, once every part was seen. `moves`: of the tables when it began."""

    moves: list[int]
    parts: Iterator[tuple[int, Records, Records]]
    found: dict[int, list[Keys]]
    hit: dict[int, Keys]


# The entries of a change's keys as they were before it, by key.
Present = Mapping[Key, np.void]


Many = tuple[Sequence[Hit], Sequence[Hit]]


class KernelDatapath:
    """The maps of one loaded program set. Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, options: tuple[int, int]) -> None:
        """`options`: OPTION_* by hook."""
        self.maps = maps
        self.options = options
        self._grace = GracePeriod()
        self._filter = AddressFilter(maps, self._all_keys, self._wait)
        self._tables = {
            version: AddressTable(maps, version, self._filter, self._wait) for version in VERSIONS
        }
        self._ready: Packed | None = None
        self._unsettled: Change | None = None
        self._cut_off: tuple[Change, Present, Many] | None = None
        self._survey: _Survey | None = None
        self._doomed: Departure | None = None
        self._dead = Parts()  # entries that no packet meets any more, and that are still in the tables
        self._epoch_word = maps.arrays["control_map"].view("<u8")
        self._cpus = possible_cpus()
        self.interfaces = InterfaceCounters(maps, self._cpus)

    @property
    def epoch(self) -> int:
        return int(self._epoch_word[0])

    @property
    def is_settled(self) -> bool:
        return self._unsettled is None and self._cut_off is None and not len(self._dead)

    @property
    def settles_at_once(self) -> bool:
        """Whether settle() would not wait for packets."""
        return self._unsettled is None or self._grace.has_passed

    def _wait(self) -> None:
        """Until no packet is left that is being judged now."""
        self._grace.wait()
        self._passed()

    def _passed(self) -> None:
        for table in self._tables.values():
            table.passed()

    def free_rows(self) -> None:
        """Makes rows that entries left free for others."""
        if any(table.has_left_rows for table in self._tables.values()):
            self._wait()

    def _let_go(self) -> None:
        """Not where the next part of many comes soon: to map rows anew costs more than to write a part of them."""
        if not self._is_under_way:
            self._tables[4].let_go()

    @property
    def _is_under_way(self) -> bool:
        is_departing = self._doomed is not None and not self._doomed.is_at_rest
        return is_departing or len(self._dead) > 0

    @_lets_go
    def tidy(self) -> bool:
        """What has time; a part of it at each call. Whether there is more that is better done soon."""
        self._pass()
        if len(self._dead):
            self._bury_part()
        if len(self._dead):
            return True
        if not self._is_under_way:
            self._tables[4].rest()
        self.free_rows()
        with suppress(FirewallError):  # a bit too many costs a probe
            self._filter.renew_in_parts()
        return False

    def close(self) -> None:
        self._grace.close()

    def get_ready(self, policy: Policy) -> None:
        """For a change to it: what can be done before packets of the old epoch are waited for."""
        self._ready = pack(self.maps, policy)

    def _packed(self, policy: Policy) -> Packed:
        ready, self._ready = self._ready, None
        return ready if ready is not None and ready.policy is policy else pack(self.maps, policy)

    @_lets_go
    def reserve(self, entries: Mapping[int, int], pins: Path) -> None:
        """Room for so many address entries by IP version; `pins`: below which the maps are pinned."""
        self._pass()
        for version, wanted in entries.items():
            if not self._tables[version].has_room(wanted + self._dead.count(version)):
                self._bury()
            self._tables[version].reserve(wanted, pins)
        self._filter.reserve(sum(entries.values()))

    def take_over(self, other: KernelDatapath) -> None:
        """From one of the same address tables, which is settled: what it has begun with them."""
        self._doomed = other._doomed

    def pinned_below(self, pins: Path) -> None:
        """The maps are pinned there from now on."""
        for table in self._tables.values():
            table.pinned_below(pins)

    def _all_keys(self) -> Iterator[tuple[int, Records]]:
        for version, table in self._tables.items():
            for keys, _ in table.dump():
                yield version, keys

    # -- changes

    @_lets_go
    def apply(self, change: Change) -> dict[int, Hits]:
        """Returns the hits of entries that went, or went over to another rule, by the handle of the rule before."""
        self._pass()
        if len(self._dead):
            self._make_way(change)
        self.clear_policy_hits(change.fresh_slots)
        clear_counters(self.maps, change.fresh_entries)
        present = self._present(change.edits)
        many = change.come or change.gone or change.changed
        if change.policy is None and len(change.edits) <= 1 and not many:
            self._apply_one(change, present)
            return _gone(change.edits, present)
        is_loose = not change.at_once and change.policy is None
        read = self._surveyed if is_loose else self._hit
        went, changed = read(change.gone), read([old for old, _ in change.changed])
        if is_loose:
            self._apply_one_by_one(change, present, (went, changed))
        else:
            self._apply_at_once(change, present, (went, changed))
        lost = [*zip(change.gone, went, strict=True)]
        for (old, new), found in zip(change.changed, changed, strict=True):
            lost.append((old, found.only(old.handles[found.rows] != new.handles[found.rows])))
        return _sum(_gone(change.edits, present), lost)

    def _present(self, edits: Sequence[Edit]) -> Present:
        found = ((edit.key, self._entry(edit.key)) for edit in edits if edit.old)
        return {key: entry for key, entry in found if entry is not None}

    def _apply_one(self, change: Change, present: Present) -> None:
        """A single edit is seen whole by itself."""
        for edit in change.edits:
            if edit.new is None:
                self._tables[edit.key.version].delete_one(edit.key)
            else:
                self._write_one(edit, present)
        if change.after != change.before:
            write_occupancy(self.maps.control, change.after)

    def _apply_one_by_one(self, change: Change, present: Present, many: Many) -> None:
        """Each edit is seen by itself. What comes needs one moment: there is none of it."""
        assert not change.come
        self._cut_off = change, present, many
        try:
            for edit in change.edits:
                if edit.new is not None:
                    self._write_one(edit, present)
            self._delete([edit for edit in change.edits if edit.new is None])
            for (old, new), found in zip(change.changed, many[1], strict=True):
                is_same = old.handles == new.handles
                self._write_counted(new, many_entry_records(new, 0), found.only(is_same[found.rows]), is_same)
            for each in change.gone:
                self._tables[each.version].delete(entries_key_records(each))
        except BaseException:
            with suppress(FirewallError):  # as in _apply_at_once()
                self._take_back()
            raise
        self._cut_off = None
        write_occupancy(self.maps.control, change.after)

    def _write_one(self, edit: Edit, present: Present) -> None:
        assert edit.new is not None
        rank, handle = edit.new
        before = None if _goes_over(edit) else present.get(edit.key)
        value = np.zeros((), ADDRESS_ENTRY)
        if before is not None:  # its hits go on
            value[()] = before
        value["since"], value["rank"], value["old_rank"], value["handle"] = 0, rank, rank, handle
        is_new = edit.old is None
        self._tables[edit.key.version].write_one(edit.key, value.tobytes(), before is not None, is_new)

    def _apply_at_once(self, change: Change, present: Present, many: Many) -> None:
        """`many`: what had been hit of the entries that go, and that change, by the million."""
        epoch = self.epoch + (2 if change.policy is None else 1)
        self._cut_off = change, present, many
        try:
            self._write_entries(change.edits, present, since=epoch, before=True)
            for each in change.come:
                self._tables[each.version].come(each, epoch)
            for each in change.gone:
                met = each if self._doomed is None else self._doomed.still_met(each)
                self._tables[each.version].leave(met, epoch)
            for (old, new), found in zip(change.changed, many[1], strict=True):
                values = many_entry_records(new, epoch)
                values["old_rank"] = old.ranks
                is_same = old.handles == new.handles
                self._write_counted(new, values, found.only(is_same[found.rows]), is_same)
            if change.policy is not None:
                write_policy(self.maps, epoch & 1, self._packed(change.policy), self.options)
        except BaseException:
            with suppress(FirewallError):  # settle() tries again before anything else is written
                self._take_back()
            raise
        self._cut_off = None
        write_occupancy(self.maps.control, _union(change.before, change.after))
        self._epoch_word[0] = epoch
        self._unsettled = change
        self._grace.begin()

    def _take_back(self) -> None:
        """Entries of an epoch that never came are invisible; none may stay until one comes with its number."""
        if self._cut_off is None:
            return
        change, present, (went, changed) = self._cut_off
        self._delete([edit for edit in change.edits if edit.old is None])
        for version in VERSIONS:
            before = {key: entry for key, entry in present.items() if key.version == version}
            if before:
                values = np.array(list(before.values()), ADDRESS_ENTRY)
                self._tables[version].write(key_records(version, list(before)), values)
        for each in change.come:
            self._tables[each.version].delete(entries_key_records(each))
        for each, found in zip(change.gone, went, strict=True):
            self._write_counted(each, many_entry_records(each, 0), found)
        for (old, _), found in zip(change.changed, changed, strict=True):
            self._write_counted(old, many_entry_records(old, 0), found)
        self._cut_off = None

    def wait_for_packets(self) -> None:
        """Until none is left that is being judged now."""
        self._grace.wait()

    @_lets_go
    def settle(self) -> None:
        """Waits until no packet of the old epoch is left, then clears away what only those could need."""
        self._pass()
        self._bury()

    def _pass(self) -> None:
        """The same, but for entries by the million: what only packets of the old epoch met is dead."""
        self._take_back()
        change = self._unsettled
        if change is None:
            return
        self._grace.finish()
        self._passed()
        write_occupancy(self.maps.control, change.after)
        self._delete([edit for edit in change.edits if edit.new is None])
        for each in change.gone:
            self._dead.add(each)
        self._unsettled = None

    def _bury(self) -> None:
        while len(self._dead):
            self._bury_part()

    def _bury_part(self) -> None:
        part = self._dead[-1]
        self._tables[part.version].delete(entries_key_records(part))
        self._dead.drop_last()

    def _make_way(self, change: Change) -> None:
        """A key that comes again is not there any more."""
        if change.come:
            self._bury()
            return
        for version in VERSIONS:
            come = [
                (edit.key, edit.new) for edit in change.edits if edit.old is None and edit.new is not None
            ]
            again = encoded(version, (pair for pair in come if pair[0].version == version))
            found = self._dead.leave_out(again)
            if len(found):
                self._tables[version].delete(entries_key_records(found))

    def _write_counted(
        self, entries: Entries, values: Records, hit: Hit, goes_on: Mask | None = None
    ) -> None:
        """Values of entries, of which some had been hit and go on counting. `goes_on`: as for AddressTable.write()."""
        for field in ("packets", "bytes", "last_hit"):
            values[field][hit.rows] = hit.records[field]
        if not values["since"].any():
            values["old_rank"] = values["rank"]
        self._tables[entries.version].write(entries_key_records(entries), values, goes_on)

    def _hit(self, many: Sequence[Entries]) -> list[Hit]:
        """Of each of some parts, the entries that were hit. Where they are many, all of the table is read: that costs
        less than a system call for each."""
        found: list[Hit] = []
        dumped: dict[int, tuple[Keys, Records]] = {}
        for each in many:
            if len(each) <= _FEW_LOOKUPS:
                is_there, values = self._tables[each.version].lookup_many(entries_key_records(each))
                rows = np.flatnonzero(is_there & (values["packets"] != 0))
                found.append(Hit(rows, values[rows]))
                continue
            if each.version not in dumped:
                dumped[each.version] = self._all_hit(each.version)
            keys, records = dumped[each.version]
            at, is_mine = _positions(each, keys)
            found.append(Hit(at[is_mine], records[is_mine]))
        return found

    @_lets_go
    def survey(self) -> bool:
        """Looks at a part of the tables; whether all of them were seen. Where entries move it begins again."""
        moves = [table.moves for table in self._tables.values()]
        if self._survey is None or self._survey.moves != moves:
            parts = (
                (version, keys, values)
                for version, table in self._tables.items()
                for keys, values in table.dump()
            )
            self._survey = _Survey(moves, parts, {version: [] for version in VERSIONS}, {})
        for version, keys, values in self._survey.parts:
            was_hit = values["packets"] != 0
            if was_hit.any():
                self._survey.found[version].append(encoded_keys(version, keys[was_hit]))
            return False
        for version, found in self._survey.found.items():
            self._survey.hit[version] = np.sort(np.concatenate([no_entries(version).keys, *found]))
        return True

    def forget_survey(self) -> None:
        self._survey = None

    def _surveyed(self, many: Sequence[Entries]) -> list[Hit]:
        """As _hit(), of those alone that a survey found hit. Where there was none, of all."""
        if self._survey is None or not self._survey.hit:
            return self._hit(many)
        found = []
        for each in many:
            rows = np.flatnonzero(is_in(each.keys, self._survey.hit[each.version]))
            (hit,) = self._hit([each.at(rows)])
            found.append(Hit(rows[hit.rows], hit.records))
        return found

    def _all_hit(self, version: int) -> tuple[Keys, Records]:
        keys, records = [no_entries(version).keys], [np.zeros(0, ADDRESS_ENTRY)]
        for key_rows, values in self._tables[version].dump():
            was_hit = values["packets"] != 0
            if was_hit.any():
                keys.append(encoded_keys(version, key_rows[was_hit]))
                records.append(values[was_hit])
        return np.concatenate(keys), np.concatenate(records)

    @_lets_go
    def hits_of(self, entries: Sequence[Entries]) -> dict[int, Hits]:
        """By handle, of those that were hit."""
        return _sum({}, zip(entries, self._hit(entries), strict=True))

    def _write_entries(self, edits: Sequence[Edit], present: Present, since: int, before: bool) -> None:
        for version in VERSIONS:
            mine = [edit for edit in edits if edit.key.version == version]
            if not mine:
                continue
            old = [edit.old for edit in mine] if before else None
            values = entry_records([edit.new for edit in mine], since, old)
            goes_on = np.array([edit.key in present and not _goes_over(edit) for edit in mine], np.bool_)
            for at, edit in enumerate(mine):
                if goes_on[at]:
                    for field in ("packets", "bytes", "last_hit"):
                        values[field][at] = present[edit.key][field]
            self._tables[version].write(key_records(version, [edit.key for edit in mine]), values, goes_on)

    def _delete(self, edits: Sequence[Edit]) -> None:
        for version in VERSIONS:
            keys = [edit.key for edit in edits if edit.key.version == version]
            if keys:
                self._tables[version].delete(key_records(version, keys))

    # -- entries that go together, at a moment to come

    @_lets_go
    def doom(self, entries: Sequence[Entries]) -> None:
        """Kernel.doom(): the first of the three steps for these."""
        self._pass()
        if self._doomed is None:
            self._doomed = Departure(self.epoch)
        for each in entries:
            self._doomed.add(each)  # before it is one of them: spare() must know it
            self._tables[each.version].hold(each, self._doomed.end)

    @_lets_go
    def are_doomed(self) -> bool:
        """Kernel.are_doomed(): the other two steps, a part of the entries at each call."""
        if self._doomed is None:
            return True
        return self._doomed.go_on(self._tables, self._wait)

    @_lets_go
    def fall(self) -> None:
        """Kernel.fall()."""
        if self._doomed is not None:
            self._take_back()  # what waits for an epoch of its own must not come with this one
            self._epoch_word[0] = self._doomed.end | self.epoch & 1
            self._doomed.has_fallen = True

    @_lets_go
    def spare(self, entries: Sequence[Entries]) -> None:
        """Kernel.spare()."""
        if self._doomed is None:
            return
        self._pass()
        for each in entries:
            spared = self._doomed.leave_out(each)
            if not len(spared):
                continue
            try:
                (hit,) = self._hit([spared])
                goes_on = np.ones(len(spared), np.bool_)
                self._write_counted(spared, many_entry_records(spared, 0), hit, goes_on)
            except BaseException:
                self._doomed.add(spared)
                raise

    @_lets_go
    def forget_doomed(self) -> None:
        self._doomed = None

    # -- the whole content

    @_lets_go
    def reconcile(self, image: Image) -> None:
        """Makes the maps hold just this. What packets meet goes from the one to the other at one moment."""
        self.settle()
        for table in self._tables.values():
            table.mend()
        self.free_rows()
        self._filter.complete()
        self._forget_what_never_came()
        self.clear_policy_hits(image.fresh_slots)
        clear_counters(self.maps, image.fresh_entries)
        come, gone, changed, strays = [], [], [], []
        for version in VERSIONS:
            found, dead = self._dump(version)
            wanted = image.entries[version]
            at, is_found = _positions(found, wanted.keys)
            come.append(wanted.only(~is_found))
            differs = is_found.copy()
            differs[is_found] = (found.ranks[at[is_found]] != wanted.ranks[is_found]) | (
                found.handles[at[is_found]] != wanted.handles[is_found]
            )
            present = found.only(np.isin(np.arange(len(found)), at[differs]))
            changed.append((present, wanted.only(differs)))
            _, is_wanted = _positions(wanted, found.keys)
            gone.append(found.only(~is_wanted))
            strays.append(dead.only(~_positions(wanted, dead.keys)[1]))
        before = read_occupancy(self.maps.control)
        change = Change([], before, image.occupancy, None, image.policy, come, gone, changed)
        self._apply_at_once(change, {}, (self._hit(gone), self._hit([old for old, _ in changed])))
        self.settle()
        for each in strays:
            self._tables[each.version].delete(entries_key_records(each))
        self._filter.renew()

    def _forget_what_never_came(self) -> None:
        """Takes back entries that wait for an epoch to come: of a change during which the process ended."""
        epoch = self.epoch
        for version in VERSIONS:
            table = self._tables[version]
            for keys, values in list(table.dump()):
                waits = values["since"] > epoch
                is_new = waits & (values["old_rank"] == RANK_NONE)
                table.delete(keys[is_new])
                stays = waits & ~is_new
                values["rank"][stays], values["since"][stays] = values["old_rank"][stays], 0
                table.write(keys[stays], values[stays], np.ones(np.count_nonzero(stays), np.bool_))

    def _dump(self, version: int) -> tuple[Entries, Entries]:
        """The entries that packets meet now, and those that none meets: left by a change that was cut off."""
        epoch = self.epoch
        keys, ranks, handles = [no_entries(version).keys], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        for key_rows, values in self._tables[version].dump():
            keys.append(encoded_keys(version, key_rows))
            ranks.append(np.where(values["since"] <= epoch, values["rank"], values["old_rank"]))
            handles.append(values["handle"])
        everything = sorted_entries(
            Entries(version, np.concatenate(keys), np.concatenate(ranks), np.concatenate(handles))
        )
        is_dead = everything.ranks == RANK_NONE
        return everything.only(~is_dead), everything.only(is_dead)

    @_lets_go
    def ingress_entries(self) -> dict[Key, Entry]:
        """The address rules that packets meet at ingress now."""
        self.settle()
        everything = (pair for version in VERSIONS for pair in decoded(self._dump(version)[0]))
        return {
            key: entry for key, entry in everything if key.scope >> C["SCOPE_HOOK_BIT"] == C["HOOK_INGRESS"]
        }

    # -- hits

    def _entry(self, key: Key) -> np.void | None:
        value = self._tables[key.version].lookup(key)
        return None if value is None else np.frombuffer(value, ADDRESS_ENTRY)[0]

    @_lets_go
    def entry_handle(self, key: Key) -> int | None:
        """Of the rule that a prefix's entry stands for now, in the table itself."""
        entry = self._entry(key)
        return None if entry is None else int(entry["handle"])

    @_lets_go
    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        hits = [NO_HITS] * len(keys)
        for version in VERSIONS:
            rows = [row for row, key in enumerate(keys) if key.version == version]
            if rows:
                _, values = self._tables[version].lookup_many(
                    key_records(version, [keys[row] for row in rows])
                )
                for row, each in zip(rows, _many_hits(values), strict=True):
                    hits[row] = each
        return hits

    def address_rules_hit_since(self, moment: float) -> npt.NDArray[np.uint32]:
        """Handles."""
        tick = wall_to_tick(moment)
        parts = [np.zeros(0, np.uint32)]
        for version in VERSIONS:
            for _, values in self._tables[version].dump():
                parts.append(values["handle"][(values["packets"] != 0) & (values["last_hit"] >= tick)])
        return np.concatenate(parts)

    @_lets_go
    def all_address_hits(self) -> dict[int, Hits]:
        hits: dict[int, Hits] = {}
        for version in VERSIONS:
            for _, values in self._tables[version].dump():
                for record in values[values["packets"] != 0]:
                    handle = int(record["handle"])
                    hits[handle] = hits.get(handle, NO_HITS).plus(_hits(record))
        return hits

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]:
        keys = np.array(slots, "<u4")
        _, values = self.maps["policy_counters"].lookup_many(keys, RULE_COUNTER, self._cpus)
        totals = np.zeros(len(keys), RULE_COUNTER)
        totals["packets"], totals["bytes"] = values["packets"].sum(axis=1), values["bytes"].sum(axis=1)
        totals["last_hit"] = values["last_hit"].max(axis=1, initial=0)
        return _many_hits(totals)

    def hits_of_entries(self, counters: Counters) -> list[Hits]:
        return _many_hits(read_counters(self.maps, counters))

    def counting_sets(self) -> dict[int, CountingSet]:
        """By hashed name, those that rules in force name."""
        return read_named(self.maps, self.epoch & 1)

    def clear_policy_hits(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.maps["policy_counters"].update(
                slot.to_bytes(4, "little"), bytes(RULE_COUNTER.itemsize * self._cpus)
            )


def _sum(hits: dict[int, Hits], many: Iterable[tuple[Entries, Hit]]) -> dict[int, Hits]:
    """With those of entries by the million, by the handle of each."""
    for entries, hit in many:
        handles, at = np.unique(entries.handles[hit.rows], return_inverse=True)
        packets, size = np.zeros(len(handles), np.uint64), np.zeros(len(handles), np.uint64)
        last_hit = np.zeros(len(handles), hit.records["last_hit"].dtype)
        np.add.at(packets, at, hit.records["packets"])
        np.add.at(size, at, hit.records["bytes"])
        np.maximum.at(last_hit, at, hit.records["last_hit"])
        columns = (each.tolist() for each in (handles, packets, size, last_hit))
        for handle, count, total, tick in zip(*columns, strict=True):
            hits[handle] = hits.get(handle, NO_HITS).plus(Hits(count, total, tick_to_wall(tick)))
    return hits


def _goes_over(edit: Edit) -> bool:
    """Whether the prefix gets another rule. One that goes without a successor still counts until it is gone."""
    return edit.old is not None and edit.new is not None and edit.old.handle != edit.new.handle


def _gone(edits: Sequence[Edit], present: Present) -> dict[int, Hits]:
    hits: dict[int, Hits] = {}
    for edit in edits:
        if edit.old and edit.key in present and (edit.new is None or _goes_over(edit)):
            hits[edit.old.handle] = hits.get(edit.old.handle, NO_HITS).plus(_hits(present[edit.key]))
    return hits


def _hits(record: np.void) -> Hits:
    return Hits(int(record["packets"]), int(record["bytes"]), tick_to_wall(int(record["last_hit"])))


def _many_hits(records: Records) -> list[Hits]:
    columns = (records[name].tolist() for name in ("packets", "bytes", "last_hit"))
    return [
        Hits(packets, size, tick_to_wall(tick)) if packets else NO_HITS
        for packets, size, tick in zip(*columns, strict=True)
    ]


def _positions(entries: Entries, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each key would stand among sorted entries, and whether it does."""
    if not len(entries):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    at = np.searchsorted(entries.keys, keys).clip(max=len(entries) - 1)
    return at, np.asarray(entries.keys[at] == keys)


def _union(before: Occupancy, after: Occupancy) -> Occupancy:
    four = [one | other for one, other in zip(before.lengths4, after.lengths4, strict=True)]
    six = [one | other for one, other in zip(before.lengths6, after.lengths6, strict=True)]
    return Occupancy((four[0], four[1], four[2], four[3]), (six[0], six[1], six[2], six[3]))


def possible_cpus() -> int:
    """What per-CPU values are copied for."""
    return max(listed_cpus("possible")) + 1
