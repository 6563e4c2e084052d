"""Performs changes on the pinned maps, so that every packet is judged by the rules before or after, whole.

Owns the order of writes. An address entry is written before the length bit that leads to it and deleted
after; more than one edit becomes visible by one store, the epoch (bpf/layout.h, struct address_entry);
what only packets of the old epoch could need is cleared away once none of them is left (settle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys, decoded, no_entries, sorted_entries
from firewall.datapath import Change, Edit, Entries, Entry, Image, Key, Occupancy
from firewall.errors import FirewallError
from firewall.hits import NO_HITS, Hits
from firewall.kernel.bpf import Map
from firewall.kernel.clock import tick_to_wall
from firewall.kernel.grace import GracePeriod
from firewall.kernel.interface_counters import InterfaceCounters
from firewall.kernel.keys import (
    PREFIX,
    encoded_keys,
    entries_key_records,
    entry_records,
    key_records,
    many_entry_records,
)
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.policy_maps import write_policy
from firewall.layout import ADDRESS_ENTRY, RANK_NONE, RULE_COUNTER, C
from firewall.lengths import LengthBit, Words, bit_mask, bucket_words

VERSIONS = (4, 6)
# The entries of a change's keys as they were before it, by key.
Present = Mapping[Key, np.void]


class KernelDatapath:
    """The maps of one loaded program set. Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, options: tuple[int, int]) -> None:
        """`options`: OPTION_* by hook."""
        self.maps = maps
        self.options = options
        self._grace = GracePeriod()
        self._unsettled: Change | None = None
        self._cut_off: tuple[Change, Present] | None = None
        self._epoch_word = maps.arrays["control_map"].view("<u8")
        self._cpus = possible_cpus()
        self.interfaces = InterfaceCounters(maps, self._cpus)

    @property
    def epoch(self) -> int:
        return int(self._epoch_word[0])

    @property
    def is_settled(self) -> bool:
        return self._unsettled is None and self._cut_off is None

    def close(self) -> None:
        self._grace.close()

    # -- changes

    def apply(self, change: Change) -> dict[int, Hits]:
        """Returns the hits of entries that went, or went over to another rule, by the handle of the rule before."""
        self.settle()
        self.clear_policy_hits(change.fresh_slots)
        present = self._present(change.edits)
        if change.policy is None and len(change.edits) <= 1 and not change.come and not change.gone:
            self._apply_one(change, present)
        else:
            self._apply_at_once(change, present)
        return _gone(change.edits, present)

    def _present(self, edits: Sequence[Edit]) -> Present:
        found = ((edit.key, self._entry(edit.key)) for edit in edits if edit.old)
        return {key: entry for key, entry in found if entry is not None}

    def _apply_one(self, change: Change, present: Present) -> None:
        """A single edit is seen whole by itself."""
        for edit in change.edits:
            if edit.new is None:
                self._delete([edit])
            else:
                self._write_entries([edit], present, since=0, before=False)
        self._set_bits(change.bits_set)
        self._write_occupancy(change.after)
        self._clear_bits(change.bits_cleared)

    def _apply_at_once(self, change: Change, present: Present) -> None:
        epoch = self.epoch + (2 if change.policy is None else 1)
        self._cut_off = change, present
        try:
            self._write_entries(change.edits, present, since=epoch, before=True)
            for each in change.come:
                self._addresses(each.version).update_batch(
                    entries_key_records(each), many_entry_records(each, epoch)
                )
            for each in change.gone:
                self._rewrite_many(each, epoch)
            if change.policy is not None:
                write_policy(self.maps, epoch & 1, change.policy, self.options)
        except BaseException:
            with suppress(FirewallError):  # settle() tries again before anything else is written
                self._take_back()
            raise
        self._cut_off = None
        self._set_bits(change.bits_set)
        self._write_occupancy(_union(change.before, change.after))
        self._epoch_word[0] = epoch
        self._unsettled = change

    def _take_back(self) -> None:
        """Entries of an epoch that never came are invisible; none may stay until one comes with its number."""
        if self._cut_off is None:
            return
        change, present = self._cut_off
        self._delete([edit for edit in change.edits if edit.old is None])
        for version in VERSIONS:
            before = {key: entry for key, entry in present.items() if key.version == version}
            if before:
                values = np.array(list(before.values()), ADDRESS_ENTRY)
                self._addresses(version).update_batch(key_records(version, list(before)), values)
        for each in change.come:
            self._addresses(each.version).delete_batch(entries_key_records(each))
        for each in change.gone:
            self._rewrite_many(each, None)
        self._cut_off = None

    def settle(self) -> None:
        """Waits until no packet of the old epoch is left, then clears away what only those could need."""
        self._take_back()
        change = self._unsettled
        if change is None:
            return
        self._grace.wait()
        self._write_occupancy(change.after)
        self._clear_bits(change.bits_cleared)
        self._delete([edit for edit in change.edits if edit.new is None])
        for each in change.gone:
            self._addresses(each.version).delete_batch(entries_key_records(each))
        self._unsettled = None

    def _rewrite_many(self, entries: Entries, goes_with: int | None) -> None:
        """Entries that go with an epoch, or stay after all."""
        if goes_with is None:
            values = many_entry_records(entries, 0)
        else:
            values = many_entry_records(entries, goes_with, is_there_before=True)
        self._addresses(entries.version).update_batch(entries_key_records(entries), values)

    def _write_entries(self, edits: Sequence[Edit], present: Present, since: int, before: bool) -> None:
        for version in VERSIONS:
            mine = [edit for edit in edits if edit.key.version == version]
            if not mine:
                continue
            old = [edit.old for edit in mine] if before else None
            values = entry_records([edit.new for edit in mine], since, old)
            for at, edit in enumerate(mine):
                if edit.key in present and not _goes_over(edit):
                    for field in ("packets", "bytes", "last_hit"):
                        values[field][at] = present[edit.key][field]
            self._addresses(version).update_batch(key_records(version, [edit.key for edit in mine]), values)

    def _delete(self, edits: Sequence[Edit]) -> None:
        for version in VERSIONS:
            keys = [edit.key for edit in edits if edit.key.version == version]
            if keys:
                self._addresses(version).delete_batch(key_records(version, keys))

    def _addresses(self, version: int) -> Map:
        return self.maps[f"address{version}"]

    # -- the whole content

    def reconcile(self, image: Image) -> None:
        """Makes the maps hold just this. What packets meet goes from the one to the other at one moment."""
        self.settle()
        self._forget_what_never_came()
        self.clear_policy_hits(image.fresh_slots)
        edits: list[Edit] = []
        come, strays = [], []
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
            for (key, old), (_, new) in zip(decoded(present), decoded(wanted.only(differs)), strict=True):
                edits.append(Edit(key, old, new))
            _, is_wanted = _positions(wanted, found.keys)
            edits += [Edit(key, old, None) for key, old in decoded(found.only(~is_wanted))]
            strays.append(dead.only(~_positions(wanted, dead.keys)[1]))
        before = self._read_occupancy()
        self._set_words(image, keep=True)
        change = Change(edits, (), (), before, image.occupancy, None, image.policy, come)
        self._apply_at_once(change, self._present(edits))
        self.settle()
        for each in strays:
            self._addresses(each.version).delete_batch(entries_key_records(each))
        self._set_words(image, keep=False)

    def _forget_what_never_came(self) -> None:
        """Takes back entries that wait for an epoch to come: of a change during which the process ended."""
        epoch = self.epoch
        for version in VERSIONS:
            table = self._addresses(version)
            for keys, values in list(table.dump(PREFIX[version], ADDRESS_ENTRY)):
                waits = values["since"] > epoch
                is_new = waits & (values["old_rank"] == RANK_NONE)
                table.delete_batch(keys[is_new])
                stays = waits & ~is_new
                values["rank"][stays], values["since"][stays] = values["old_rank"][stays], 0
                table.update_batch(keys[stays], values[stays])

    def _dump(self, version: int) -> tuple[Entries, Entries]:
        """The entries that packets meet now, and those that none meets: left by a change that was cut off."""
        epoch = self.epoch
        keys, ranks, handles = [no_entries(version).keys], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        for key_rows, values in self._addresses(version).dump(PREFIX[version], ADDRESS_ENTRY):
            keys.append(encoded_keys(version, key_rows))
            ranks.append(np.where(values["since"] <= epoch, values["rank"], values["old_rank"]))
            handles.append(values["handle"])
        everything = sorted_entries(
            Entries(version, np.concatenate(keys), np.concatenate(ranks), np.concatenate(handles))
        )
        is_dead = everything.ranks == RANK_NONE
        return everything.only(~is_dead), everything.only(is_dead)

    def _set_words(self, image: Image, keep: bool) -> None:
        """Length bits: all that are needed, beside what is there or alone."""
        for version, words in image.words.items():
            there = self._length_words(version)
            there[...] = there | words if keep else words

    def ingress_entries(self) -> dict[Key, Entry]:
        """The address rules that packets meet at ingress now."""
        self.settle()
        everything = (pair for version in VERSIONS for pair in decoded(self._dump(version)[0]))
        return {
            key: entry for key, entry in everything if key.scope >> C["SCOPE_HOOK_BIT"] == C["HOOK_INGRESS"]
        }

    def _read_occupancy(self) -> Occupancy:
        control = self.maps.arrays["control_map"][0]
        first, second, third, fourth = control["short_lengths6"].tolist()
        return Occupancy(int(control["occupied"]), (first, second, third, fourth))

    # -- length bits and control words

    def _set_bits(self, bits: Sequence[LengthBit]) -> None:
        for bit in bits:
            bucket_words(bit, self._length_words(bit.version))[...] |= bit_mask(bit)

    def _clear_bits(self, bits: Sequence[LengthBit]) -> None:
        for bit in bits:
            bucket_words(bit, self._length_words(bit.version))[...] &= ~bit_mask(bit)

    def _length_words(self, version: int) -> Words:
        name, field = ("lengths4", "lengths") if version == 4 else ("lengths6", "word")
        return self.maps.arrays[name][field]

    def _write_occupancy(self, occupancy: Occupancy) -> None:
        control = self.maps.arrays["control_map"]
        control["short_lengths6"] = occupancy.short_lengths6
        control["occupied"] = occupancy.lists

    # -- hits

    def _entry(self, key: Key) -> np.void | None:
        value = self._addresses(key.version).lookup(key_records(key.version, [key]).tobytes())
        return None if value is None else np.frombuffer(value, ADDRESS_ENTRY)[0]

    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        hits = []
        for key in keys:
            entry = self._entry(key)
            hits.append(NO_HITS if entry is None else _hits(entry))
        return hits

    def all_address_hits(self) -> dict[int, Hits]:
        hits: dict[int, Hits] = {}
        for version in VERSIONS:
            for _, values in self._addresses(version).dump(PREFIX[version], ADDRESS_ENTRY):
                for record in values[values["packets"] != 0]:
                    handle = int(record["handle"])
                    hits[handle] = hits.get(handle, NO_HITS).plus(_hits(record))
        return hits

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]:
        table = self.maps["policy_counters"]
        hits = []
        for slot in slots:
            raw = table.lookup(slot.to_bytes(4, "little"), RULE_COUNTER.itemsize * self._cpus)
            by_cpu = np.frombuffer(raw or b"", RULE_COUNTER)
            last = int(by_cpu["last_hit"].max(initial=0))
            hits.append(Hits(int(by_cpu["packets"].sum()), int(by_cpu["bytes"].sum()), tick_to_wall(last)))
        return hits

    def clear_policy_hits(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.maps["policy_counters"].update(
                slot.to_bytes(4, "little"), bytes(RULE_COUNTER.itemsize * self._cpus)
            )


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


def _positions(entries: Entries, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each key would stand among sorted entries, and whether it does."""
    if not len(entries):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    at = np.searchsorted(entries.keys, keys).clip(max=len(entries) - 1)
    return at, np.asarray(entries.keys[at] == keys)


def _union(before: Occupancy, after: Occupancy) -> Occupancy:
    short = [one | other for one, other in zip(before.short_lengths6, after.short_lengths6, strict=True)]
    return Occupancy(before.lists | after.lists, (short[0], short[1], short[2], short[3]))


def possible_cpus() -> int:
    """What per-CPU values are copied for: /sys/devices/system/cpu/possible, as in "0-63"."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        ranges = [part.split("-") for part in file.read().strip().split(",")]
    return max(int(each[-1]) for each in ranges) + 1
