"""Maps and programs as the service makes them from what was compiled."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from firewall.errors import ProgramRejected
from firewall.kernel import bpf, bpffs
from firewall.kernel.assembly import assemble
from firewall.kernel.compiled import Code, Compiled, MapShape
from tests.datapath.loaded import Loaded

ARRAY = 2
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
RETURN_PASS = struct.pack("=BBhi", 0xB7, 0, 0, 2) + EXIT
READ_NOWHERE = struct.pack("=BBhi", 0x79, 0x60, 0, 0) + EXIT  # r0 = *(r6), which was never set


def of(code: bytes, **maps: MapShape) -> Compiled:
    return Compiled("none", b"", maps, {"fw_xdp_ip": Code.taken(code, {})})


@pytest.fixture
def pins(fresh_directory: Path) -> Path:
    root = fresh_directory / "bpf" / "root"
    for part in ("maps", "programs"):
        bpffs.ensure(root / part)
    return root


def test_maps_that_are_pinned_are_used_and_others_made(pins: Path) -> None:
    shape = MapShape(ARRAY, 4, 8, 16, 0)
    first = of(RETURN_PASS, hits=shape)
    assemble(first, pins)
    hits = bpf.Map.pinned(pins / "maps" / "hits")
    assert hits.info[0:1] + hits.info[2:] == (ARRAY, 4, 8, 16, 0, "hits")
    (pins / "programs" / "fw_xdp_ip").unlink()
    assemble(of(RETURN_PASS, hits=shape, more=shape), pins)
    assert bpf.Map.pinned(pins / "maps" / "hits").info.id == hits.info.id
    assert bpf.Map.pinned(pins / "maps" / "more").info.id != hits.info.id


def test_what_the_verifier_says_is_the_error(pins: Path) -> None:
    with pytest.raises(ProgramRejected) as raised:
        assemble(of(READ_NOWHERE), pins)
    assert raised.value.detail == "the filter programs could not be loaded: fw_xdp_ip: R6 !read_ok"
    assert "R6 !read_ok" in raised.value.log
    assert "ebpf-fw check" in raised.value.hint or "root" in raised.value.hint
    assert not list((pins / "programs").iterdir())


def test_maps_say_what_is_in_them(firewall: Loaded) -> None:
    """Type information, by which bpftool shows names of fields."""
    for name in ("control_map", "interface_slots", "policy_rules"):
        types, key, value = bpf.map_types(firewall.kernel._set.maps[name].fd)
        assert types
        assert key
        assert value
    assert b"interface_slot\0" in bpf.types_of(types)
