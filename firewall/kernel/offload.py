"""The filter in a device's own hardware: a program and maps of its own, loaded for that device.

Owns what such a program can judge (address rules at ingress, as many as the device has room for) and keeping
its maps equal to the rules. Its tables change entry by entry: hardware has no epoch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.address_index import decoded
from firewall.datapath import Change, Edit, Entry, Key, Link, MapFill
from firewall.errors import Conflict, ProgramRejected, TableFull
from firewall.hits import NO_HITS, Hits, InterfaceHits
from firewall.kernel import bpf, bpffs, program_set
from firewall.kernel.bpf import Map
from firewall.kernel.keys import entry_records, key_records
from firewall.kernel.loader import load_offload
from firewall.kernel.source import OFFLOAD_PROGRAM
from firewall.layout import ADDRESS_ENTRY, LAYOUT, RANK_NONE, C
from firewall.policy import Policy

_STATE = LAYOUT.structs["offload_state"]
_INGRESS = C["HOOK_INGRESS"]
# Devices differ in what they hold and do not tell: the first of these that one takes is its size.
_SIZES = (16384, 1024, 64, 2)


class OffloadDevice:
    """One interface's hardware. Raises KernelRefused where it takes no programs."""

    def __init__(self, pin_root: Path, link: Link, options: int, winners: Mapping[Key, Entry]) -> None:
        """`options`: OPTION_* of the ingress hook; `winners`: the address rules now."""
        bpf.try_offload(link.ifindex, link.name)
        self._link = link
        self._pins = pin_root / "offload" / link.name
        self._entries: dict[Key, Entry] = {}
        self.options = options
        self.capacity = self._load()
        try:
            self._maps = {
                name: Map.pinned(self._pins / "maps" / name)
                for name in ("offload_state", "offload4", "offload6")
            }
            self.program = bpf.get(self._pins / "programs" / OFFLOAD_PROGRAM)
            edits = [Edit(key, None, entry) for key, entry in winners.items()]
            self.check(edits, None)
            self.apply(edits)
        except BaseException:
            program_set.discard(self._pins)
            raise

    def _load(self) -> int:
        for size in _SIZES:
            program_set.discard(self._pins)
            for part in ("maps", "programs"):
                bpffs.ensure(self._pins / part)
            try:
                load_offload(self._pins, self._link.name, size)
                return size
            except ProgramRejected:
                program_set.discard(self._pins)
                if size == _SIZES[-1]:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Unpins. Detach first."""
        self.let_go()
        program_set.discard(self._pins)

    def let_go(self) -> None:
        """What is attached and pinned stays so."""
        for each in self._maps.values():
            each.close()
        os.close(self.program)

    def check(self, edits: Sequence[Edit], policy: Policy | None) -> None:
        """Raises where the hardware could not judge the rules as they will be."""
        if policy is not None and policy.hooks[_INGRESS].best_rank != RANK_NONE:
            raise Conflict(
                f"{self._link.name} filters in hardware, which judges only rules that are addresses alone",
                f'attach {self._link.name} in mode "native", or give the rule interfaces=... and direction "egress"',
                code="offload_unsupported",
            )
        for version in (4, 6):
            wanted = sum(key.version == version for key in self._entries)
            wanted += sum((each.new is not None) - (each.old is not None) for each in _ours(edits, version))
            if wanted > self.capacity:
                raise TableFull(
                    f"the hardware of {self._link.name} holds at most {self.capacity} IPv{version} entries",
                    f'attach {self._link.name} in mode "native" for more',
                    table=f"offload{version}",
                    capacity=self.capacity,
                    wanted=wanted,
                )

    def apply(self, edits: Sequence[Edit]) -> None:
        for version in (4, 6):
            table = self._maps[f"offload{version}"]
            for edit in _ours(edits, version):
                key = key_records(version, [edit.key]).tobytes()
                if edit.new is None:
                    self._entries.pop(edit.key, None)
                    table.delete(key)
                else:
                    table.update(key, entry_records([edit.new], 0).tobytes())
                    self._entries[edit.key] = edit.new
        self._write_state()

    def _write_state(self) -> None:
        zero = bytes(4)
        raw = self._maps["offload_state"].lookup(zero) or bytes(_STATE.itemsize)
        state = np.frombuffer(bytearray(raw), _STATE)
        for name in ("lengths4", "lengths6", "short_lengths6"):
            state[name] = 0
        state["options"] = self.options
        for key in self._entries:
            if key.version == 4:
                state["lengths4"][0, key.scope] |= np.uint64(1 << key.length)
            elif key.length < C["LENGTHS6_SHORTEST"]:
                state["short_lengths6"][0, key.scope] |= np.uint32(1 << key.length)
            else:
                word, at = divmod(key.length - C["LENGTHS6_SHORTEST"], 64)
                state["lengths6"][0, key.scope * 2 + word] |= np.uint64(1 << at)
        self._maps["offload_state"].update(zero, state.tobytes())

    def address_hits(self, key: Key) -> Hits:
        if key not in self._entries:
            return NO_HITS
        raw = self._maps[f"offload{key.version}"].lookup(key_records(key.version, [key]).tobytes())
        if raw is None:
            return NO_HITS
        record = np.frombuffer(raw, ADDRESS_ENTRY)[0]
        return Hits(int(record["packets"]), int(record["bytes"]), 0.0)

    def handles_hit(self) -> npt.NDArray[np.uint32]:
        """Ever: the hardware does not tell when."""
        hit = [entry.handle for key, entry in self._entries.items() if self.address_hits(key).packets]
        return np.array(hit, np.uint32)

    def fills(self) -> list[MapFill]:
        used = Counter(key.version for key in self._entries)
        return [MapFill(f"offload{v}:{self._link.name}", used[v], self.capacity, "") for v in (4, 6)]

    def interface_hits(self) -> list[InterfaceHits]:
        raw = self._maps["offload_state"].lookup(bytes(4))
        if raw is None:
            return []
        counters = np.frombuffer(raw, _STATE)["by"][0]
        found = []
        for index in np.flatnonzero(counters["packets"]):
            verdict, reason = divmod(int(index), C["REASON_CAPACITY"])
            packets, size = int(counters["packets"][index]), int(counters["bytes"][index])
            found.append(InterfaceHits(_INGRESS, verdict, reason, packets, size))
        return found


def _ours(edits: Sequence[Edit], version: int) -> list[Edit]:
    return [
        each
        for each in edits
        if each.key.version == version and each.key.scope >> C["SCOPE_HOOK_BIT"] == _INGRESS
    ]


def edits_of(change: Change) -> list[Edit]:
    """All that a change does to entries, one by one: hardware holds few of them."""
    edits = list(change.edits)
    for each in change.come:
        edits += [Edit(key, None, entry) for key, entry in decoded(each)]
    for each in change.gone:
        edits += [Edit(key, entry, None) for key, entry in decoded(each)]
    for before, after in change.changed:
        pairs = zip(decoded(before), decoded(after), strict=True)
        edits += [Edit(key, old, new) for (key, old), (_, new) in pairs]
    return edits


def check_change(devices: Iterable[OffloadDevice], edits: Sequence[Edit], change: Change) -> None:
    """Raises before anything is touched where one of the devices cannot follow."""
    for device in devices:
        device.check(edits, change.policy)
