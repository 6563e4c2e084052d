"""The loaded programs and their maps below pin_root: adopted when they are the ones we would load, else built
beside the old ones and put in their place.

Owns the directories of pins:

    pin_root/maps, pin_root/programs     what the hooks run
    pin_root/next/...                    being built; whoever finds it left over removes it
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from firewall.errors import FirewallError, KernelRefused
from firewall.kernel import bpf, bpffs
from firewall.kernel.address_table import no_rows
from firewall.kernel.assembly import assemble
from firewall.kernel.keys import PREFIX
from firewall.kernel.maps import COUNTING, KEPT, PinnedMaps
from firewall.kernel.program_cache import compiled
from firewall.kernel.source import (
    BEYOND,
    PROGRAMS,
    Capacities,
    filter_order,
    layout_fingerprint,
    program_fingerprint,
)
from firewall.layout import ADDRESS_ENTRY, C

INITIAL_ADDRESSES = 16384


@dataclass
class ProgramSet:
    """Programs by name (descriptors) and the maps that they use."""

    programs: dict[str, int]
    maps: PinnedMaps
    bcc: str | None

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)
        self.programs.clear()
        self.maps.close()


def pinned_capacities(pin_root: Path, owner: int) -> Capacities | None:
    """Of the maps that are pinned, None where those to keep are not all there, are laid out in another way or hold
    the rules of another owner."""
    try:
        maps = PinnedMaps(pin_root, KEPT)
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    try:
        if (int(maps.control["layout"]), int(maps.control["owner"])) != (layout_fingerprint(), owner):
            return None
        size = {name: maps[name].info.max_entries for name in KEPT}
        counting = _counting_sizes(pin_root)
        of_index = size["policy_index4"] * C["PAIR"] - C["POLICY_BLOCKS_BEGIN"]
        return Capacities(
            rules=size["policy_counters"] // 2,
            vectors=size["policy_vectors"] // 2,
            lines=size["policy_lines"] // 2,
            intervals4=size["policy_ranges4"] // 2,
            intervals6=size["policy_ranges6"] // 2,
            blocks=(of_index >> C["POLICY_BLOCK_BITS"]) // 2,
            **counting,
        )
    finally:
        maps.close()


def _counting_sizes(pin_root: Path) -> dict[str, int]:
    """Of the maps that count entries of sets; none where they are not all there: others are made then."""
    size = {}
    for name in COUNTING:
        try:
            with closing(bpf.Map.pinned(pin_root / "maps" / name)) as found:
                size[name] = found.info.max_entries
        except FileNotFoundError:
            return {}
    return {
        "named": size["policy_named"] // 2,
        "prefixes4": size["policy_set4"] // 2,
        "prefixes6": size["policy_set6"] // 2,
        "entries": size["entry_counters"],
    }


def kept_maps(pin_root: Path) -> list[str]:
    """The pinned maps that other programs can go on with."""
    return [*KEPT, *(COUNTING if _counting_sizes(pin_root) else ())]


def pinned_map_ids(pin_root: Path) -> set[int]:
    """Of whatever is pinned there, also where some are missing or laid out in another way."""
    ids = set()
    for path in (pin_root / "maps").glob("*"):
        with suppress(FirewallError, FileNotFoundError), closing(bpf.Map.pinned(path)) as found:
            ids.add(found.info.id)
    return ids


def adopt(pin_root: Path, capacities: Capacities) -> ProgramSet | None:
    """The pinned set, when it is complete and what build() would make. `capacities`: those of the pinned maps."""
    try:
        maps = PinnedMaps(pin_root)
    except FileNotFoundError:
        return None
    if int(maps.control["program"]) != program_fingerprint(capacities):
        maps.close()
        return None
    try:
        return _linked(ProgramSet(_open_programs(pin_root), maps, None))
    except FileNotFoundError:
        maps.close()
        return None


def recover(pin_root: Path, program: int) -> None:
    """Pins the maps of a loaded program: pins go when the mount that holds them goes (a mount namespace ends with
    its last process), a program that is attached stays and keeps its maps.

    Linux opens maps by their ids for CAP_SYS_ADMIN alone. Without it nothing is recovered, and what they count is gone.
    """
    try:
        found = {each.info.name: each for each in map(bpf.Map.by_id, bpf.program_info(program).map_ids)}
    except KernelRefused as refusal:
        if refusal.errno != errno.EPERM:
            raise
        return
    discard(pin_root / "maps")
    (pin_root / "maps").mkdir()
    for version in (4, 6):
        outer = found.get(f"address{version}_maps")
        inner_id = outer.lookup(bytes(4)) if outer else None
        if inner_id is not None:
            found[f"address{version}"] = bpf.Map.by_id(int.from_bytes(inner_id, "little"))
    outer = found.get("rows_maps")
    for slot in range(C["ROWS_SLOTS"]):
        inner_id = outer.lookup(slot.to_bytes(4, "little")) if outer else None
        if inner_id is not None:
            found[f"address_rows{slot}"] = bpf.Map.by_id(int.from_bytes(inner_id, "little"))
    for name, each in found.items():
        if name in KEPT:
            bpf.pin(each.fd, pin_root / "maps" / name)
        each.close()


def build(
    pin_root: Path,
    capacities: Capacities,
    keep: Mapping[str, int],
    owner: int = 0,
    cache: Path | None = None,
) -> ProgramSet:
    """Loads a new set below pin_root/next, over the maps in `keep` (descriptors by name) and new others. `cache`: where
    compiled programs are kept.

    Nothing that runs is touched. Raises ProgramRejected and leaves nothing behind.
    """
    programs = compiled(filter_order(capacities), cache)
    beside = pin_root / "next"
    discard(beside)
    bpffs.ensure(beside)
    for part in ("maps", "programs"):
        (beside / part).mkdir()
    try:
        for name, fd in keep.items():
            bpf.pin(fd, beside / "maps" / name)
        assemble(programs, beside)
        _ensure_addresses(beside)
        maps = PinnedMaps(beside)
        maps.control["program"] = program_fingerprint(capacities)
        maps.control["layout"] = layout_fingerprint()
        maps.control["owner"] = owner
        return _linked(ProgramSet(_open_programs(beside), maps, programs.compiler))
    except BaseException:
        discard(beside)
        raise


def _linked(loaded: ProgramSet) -> ProgramSet:
    """The same set, its programs now led to those that they end in."""
    for way, program in BEYOND.items():
        loaded.maps[way].update(bytes(4), loaded.programs[program].to_bytes(4, "little"))
    return loaded


def _ensure_addresses(beside: Path) -> None:
    """Puts empty address tables where none were kept."""
    for version in (4, 6):
        path = beside / "maps" / f"address{version}"
        if not path.exists():
            entries = bpf.Map.hash(path.name, PREFIX[version], ADDRESS_ENTRY, INITIAL_ADDRESSES)
            outer = bpf.Map.pinned(beside / "maps" / f"{path.name}_maps")
            outer.point_at(0, entries)
            bpf.pin(entries.fd, path)
            entries.close()
            outer.close()
    for slot in range(C["ROWS_SLOTS"]):
        path = beside / "maps" / f"address_rows{slot}"
        if not path.exists():
            outer_path = beside / "maps" / "rows_maps"
            with closing(no_rows(slot)) as rows, closing(bpf.Map.pinned(outer_path)) as outer:
                outer.point_at(slot, rows)
                bpf.pin(rows.fd, path)


def missing_pins(pins: Path, current: ProgramSet) -> list[str]:
    """Paths below `pins` that do not lead to the set's own maps and programs."""
    missing = []
    for path, fd in _pins(pins, current):
        try:
            pinned = bpf.get(path)
        except (FileNotFoundError, FirewallError):
            missing.append(str(path))
            continue
        try:
            if bpf.object_id(pinned) != bpf.object_id(fd):
                missing.append(str(path))
        finally:
            os.close(pinned)
    return missing


def pin_again(pins: Path, current: ProgramSet) -> None:
    for part in ("maps", "programs"):
        bpffs.ensure(pins / part)
    ours = dict(_pins(pins, current))
    for path in map(Path, missing_pins(pins, current)):
        path.unlink(missing_ok=True)
        bpf.pin(ours[path], path)


def _pins(pins: Path, current: ProgramSet) -> list[tuple[Path, int]]:
    maps = [(pins / "maps" / name, each.fd) for name, each in current.maps.maps.items()]
    return maps + [(pins / "programs" / name, fd) for name, fd in current.programs.items()]


def promote(pin_root: Path) -> None:
    """Makes the set below pin_root/next the pinned one. Call when every hook runs it."""
    for part in ("maps", "programs"):
        discard(pin_root / part)
        (pin_root / "next" / part).rename(pin_root / part)
    discard(pin_root / "next")


def discard(directory: Path) -> None:
    """Unpins everything below a directory. What a hook still runs goes on running."""
    shutil.rmtree(directory, ignore_errors=True)


def _open_programs(pin_root: Path) -> dict[str, int]:
    programs: dict[str, int] = {}
    try:
        for name in PROGRAMS:
            programs[name] = bpf.get(pin_root / "programs" / name)
    except BaseException:
        for fd in programs.values():
            os.close(fd)
        raise
    return programs
