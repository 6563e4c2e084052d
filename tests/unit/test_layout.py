"""The reader of bpf/layout.h: headers in, numbers and dtypes out; and what the real header must keep."""

from __future__ import annotations

import numpy as np
import pytest

from firewall.layout import BIT_NUMBERS, BPF_DIRECTORY, HOOKS, LAYOUT, RANK_NONE, REASONS, VERDICTS, C, Layout

HEADER = """
/* A comment with #define HIDDEN 9
 * and struct hidden { __u8 x; }; in it. */
#ifndef GUARD_H
#define GUARD_H

#define SMALL 7 /* behind a value */
#define HEX 0xff
#define NOT_A_NUMBER (SMALL + 1)
#define MACRO(x) x
#define ROOM 4

enum color {
	COLOR_RED = 0, /* first */
	COLOR_DARK_BLUE = 1,
	COLOR_COUNT = 2,
};

struct inner {
	__u8 a; /* bytes */
	__u8 b;
	__u16 c;
};

struct outer {
	__u64 wide;
	__u32 list[3];
	struct inner by[ROOM];
	__u32 end;
};

#endif
"""
READ = Layout(HEADER)


def test_numbers_are_read_and_nothing_else() -> None:
    assert READ.constants == {
        "SMALL": 7, "HEX": 255, "ROOM": 4, "COLOR_RED": 0, "COLOR_DARK_BLUE": 1, "COLOR_COUNT": 2,
    }  # fmt: skip


def test_enumerators_belong_to_their_enum() -> None:
    assert READ.enums == {"color": {"COLOR_RED": 0, "COLOR_DARK_BLUE": 1, "COLOR_COUNT": 2}}


def test_names_are_in_the_form_of_the_api_without_the_count() -> None:
    assert READ.names("color", "COLOR_") == ("red", "dark_blue")


def test_a_struct_has_its_fields_in_order_without_padding() -> None:
    assert READ.structs["inner"] == np.dtype([("a", "u1"), ("b", "u1"), ("c", "<u2")])
    outer = READ.structs["outer"]
    assert outer.names == ("wide", "list", "by", "end")
    assert [outer.fields[name][1] for name in outer.names] == [0, 8, 20, 36]
    assert outer.itemsize == 40


def test_a_struct_may_hold_arrays_of_structs() -> None:
    value = np.zeros(1, READ.structs["outer"])
    value["by"]["c"][0, 3] = 0x0102
    assert value.tobytes()[34:36] == b"\x02\x01"


def test_a_type_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="__s128"):
        Layout("struct s {\n\t__s128 x;\n};\n")


def test_an_enum_with_a_gap_has_no_names() -> None:
    with pytest.raises(KeyError):
        Layout("enum e {\n\tE_A = 0,\n\tE_C = 2,\n};\n").names("e", "E_")


# --- bpf/layout.h


def test_the_enums_that_leave_the_kernel_only_grow() -> None:
    assert HOOKS == ("ingress", "egress")
    assert VERDICTS == ("pass", "drop")
    assert REASONS[:10] == (
        "default",
        "rule",
        "not_ip",
        "fragment",
        "malformed_link",
        "malformed_ipv4",
        "malformed_ipv6",
        "malformed_extension",
        "malformed_l4",
        "malformed_fragment",
    )


def test_the_counters_have_room_for_every_reason() -> None:
    assert C["REASON_COUNT"] == len(REASONS) <= C["REASON_CAPACITY"]
    assert C["COUNTERS_PER_INTERFACE"] == len(HOOKS) * len(VERDICTS) * C["REASON_CAPACITY"]


def test_the_sizes_that_the_header_asserts_are_the_sizes_read() -> None:
    lines = (BPF_DIRECTORY / "layout.h").read_text(encoding="utf-8").splitlines()
    asserted = [
        line.removeprefix("LAYOUT_SIZE(struct ").removesuffix(");")
        for line in lines
        if line.startswith("LAYOUT_SIZE(")
    ]
    assert len(asserted) > 5
    for each in asserted:
        name, size = each.split(", ")
        assert LAYOUT.structs[name].itemsize == int(size), name


def test_no_rank_is_worse_than_none() -> None:
    assert C["RANK_NEVER_DROP"] < C["RANK_FIRST"]
    assert C["RANK_FIRST"] + 65535 * 2 + C["RANK_ALLOW"] < RANK_NONE


def test_the_rows_of_the_protocol_table_do_not_overlap() -> None:
    assert C["PROTOCOL_ROW_TCP"] >= 256
    assert C["PROTOCOL_ROW_PORTS"] >= C["PROTOCOL_ROW_TCP"] + 256
    assert C["PROTOCOL_ROWS"] >= C["PROTOCOL_ROW_PORTS"] + 256
    assert C["ICMP_ROWS"] == 2 * 256 * 256
    assert C["PORT_ROWS"] == 65536


def test_every_bit_has_its_number() -> None:
    for bit in range(64):
        assert BIT_NUMBERS[(C["DE_BRUIJN"] * (1 << bit) & (1 << 64) - 1) >> 58] == bit
