"""The match fields that are not addresses: every text form, and every text that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.match import (
    FLAG_BITS,
    PROTOCOL_ALIASES,
    PROTOCOL_NUMBERS,
    TTL_MAX_S,
    IcmpType,
    PortRange,
    TcpFlags,
    format_flags,
    format_protocol,
    parse_duration,
    parse_flags,
    parse_icmp_type,
    parse_ports,
    parse_protocol,
)

NOT_NUMBERS = [None, True, False, 1.0, [], {}, b"6"]


# --- protocols


@given(st.integers(0, 255))
def test_a_protocol_is_read_as_number_text_and_name(number: int) -> None:
    assert parse_protocol(number) == parse_protocol(str(number)) == number
    assert parse_protocol(format_protocol(number)) == number


@pytest.mark.parametrize(("name", "number"), [*PROTOCOL_NUMBERS.items(), *PROTOCOL_ALIASES.items()])
def test_a_protocol_name_is_read_in_any_case(name: str, number: int) -> None:
    assert parse_protocol(name) == parse_protocol(name.upper()) == number


@pytest.mark.parametrize(
    ("name", "number"),
    [("tcp", 6), ("udp", 17), ("icmp", 1), ("icmpv6", 58), ("sctp", 132), ("gre", 47), ("esp", 50)],
)
def test_the_names_of_the_contract_have_their_iana_numbers(name: str, number: int) -> None:
    assert parse_protocol(name) == number
    assert format_protocol(number) == name


def test_every_protocol_has_one_canonical_name() -> None:
    assert len(set(PROTOCOL_NUMBERS.values())) == len(PROTOCOL_NUMBERS)
    assert not PROTOCOL_NUMBERS.keys() & PROTOCOL_ALIASES.keys()


@pytest.mark.parametrize("value", [256, -1, "256", "9999999", "9" * 5000, *NOT_NUMBERS])
def test_what_is_no_protocol_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a protocol number from 0 to 255"):
        parse_protocol(value)


@pytest.mark.parametrize("value", ["", "tpc", "-1", "+6", " tcp", "6.0", "٦", "0x6"])
def test_an_unknown_protocol_name_asks_for_its_number(value: str) -> None:
    with pytest.raises(ValueError, match="is no protocol known by name; use its number, 0 to 255"):
        parse_protocol(value)


# --- ports


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_ports_are_read_again_as_written(one: int, other: int) -> None:
    ports = PortRange(min(one, other), max(one, other))
    assert parse_ports(str(ports)) == ports
    assert parse_ports(one) == parse_ports(str(one)) == parse_ports(f"{one}-{one}") == PortRange(one, one)


def test_a_range_of_one_port_is_written_as_the_port() -> None:
    assert str(parse_ports("80-80")) == "80"


@pytest.mark.parametrize("value", ["65536", 65536, -1, "-1", "80-", "-80", "-", "", "a", "80-65536", "1-2-3"])
def test_what_is_no_port_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a port from 0 to 65535"):
        parse_ports(value)


@pytest.mark.parametrize("value", [" 80", "80 - 81", "+80", "٨٠", "8e1", "0000080", "9" * 5000])
def test_odd_spellings_of_a_port_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not a port from 0 to 65535"):
        parse_ports(value)


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_port_is_an_integer_or_text(value: object) -> None:
    with pytest.raises(ValueError, match="is not a port or a range"):
        parse_ports(value)


def test_a_range_that_ends_before_it_starts_names_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="'90-80' ends before it starts; 80-90 may have been meant"):
        parse_ports("90-80")


# --- ICMP types


@given(st.integers(0, 255), st.none() | st.integers(0, 255))
def test_icmp_types_are_read_again_as_written(kind: int, code: int | None) -> None:
    assert parse_icmp_type(str(IcmpType(kind, code))) == IcmpType(kind, code)
    assert parse_icmp_type(kind) == IcmpType(kind, None)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("256", "ICMP type"),
        (256, "ICMP type"),
        (-1, "ICMP type"),
        ("", "ICMP type"),
        ("/1", "ICMP type"),
        ("echo", "ICMP type"),
        ("3/", "ICMP code"),
        ("3/256", "ICMP code"),
        ("3/1/1", "ICMP code"),
        ("3/x", "ICMP code"),
    ],
)
def test_what_is_no_icmp_type_is_refused(value: object, what: str) -> None:
    with pytest.raises(ValueError, match=f"is not an {what} from 0 to 255"):
        parse_icmp_type(value)


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_an_icmp_type_is_an_integer_or_text(value: object) -> None:
    with pytest.raises(ValueError, match="is not an ICMP type such as"):
        parse_icmp_type(value)


# --- TCP flags


@given(st.integers(0, 255))
def test_flags_are_read_again_as_written(bits: int) -> None:
    assert parse_flags(format_flags(bits)) == bits
    assert parse_flags([name.upper() for name in format_flags(bits)]) == bits


def test_the_flags_have_the_bits_of_the_tcp_header() -> None:
    assert list(FLAG_BITS) == ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"]
    assert list(FLAG_BITS.values()) == [1 << bit for bit in range(8)]


def test_an_unknown_flag_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'sny' is not one of fin, syn, rst, psh, ack, urg, ece, cwr"):
        parse_flags(["syn", "sny"])


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_flags_match_where_each_asked_bit_is_as_asked(asked: int, forbidden: int, flags: int) -> None:
    expected = all(
        (not asked >> bit & 1 or flags >> bit & 1) and (not forbidden >> bit & 1 or not flags >> bit & 1)
        for bit in range(8)
    )
    assert TcpFlags(asked, forbidden).matches(flags) == expected


# --- durations


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1, 1),
        (3600, 3600),
        ("1", 1),
        ("90", 90),
        ("90s", 90),
        ("2m", 120),
        ("1h", 3600),
        ("1h30m", 5400),
        ("7d", 604800),
        ("2w", 1209600),
        ("1d1h1m1s", 90061),
        (TTL_MAX_S, TTL_MAX_S),
        ("3650d", TTL_MAX_S),
    ],
)
def test_a_duration_is_seconds(value: object, seconds: int) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [0, -1, "0", "0s", "0h0m", TTL_MAX_S + 1, "3651d", "9" * 5000, "9999999999w", *NOT_NUMBERS],
)
def test_a_duration_beyond_its_bounds_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be from 1 second to 315360000 seconds \(ten years\)"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["", "h", "1 h", "1H", "1.5h", "-1h", "1h30", "1y", "soon", "١h", "PT1H"])
def test_what_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds or a duration such as"):
        parse_duration(value)
