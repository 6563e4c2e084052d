"""Addresses and prefixes: text to numbers and back, judged by Python's own ipaddress."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.address import Prefix, format_address, host_bits, parse_prefix


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    version = draw(st.sampled_from((4, 6)))
    bits = 32 if version == 4 else 128
    length = draw(st.integers(0, bits))
    address = draw(st.integers(0, 2**bits - 1))
    return Prefix(version, address >> (bits - length) << (bits - length), length)


@given(prefixes())
def test_what_is_written_is_read_again(prefix: Prefix) -> None:
    assert parse_prefix(str(prefix)) == prefix


@given(prefixes())
def test_a_prefix_reads_as_ipaddress_reads_it(prefix: Prefix) -> None:
    network = ip_network(str(prefix))
    assert (network.version, int(network.network_address), network.prefixlen) == prefix


@given(prefixes(), prefixes())
def test_covering_is_being_a_supernet(one: Prefix, other: Prefix) -> None:
    first, second = ip_network(str(one)), ip_network(str(other))
    assert one.covers(other) == (one.version == other.version and second.subnet_of(first))  # type: ignore[arg-type]


@given(prefixes(), st.data())
def test_a_prefix_covers_every_longer_one_of_its_own_addresses(prefix: Prefix, data: st.DataObject) -> None:
    bits = 32 if prefix.version == 4 else 128
    inside = prefix.address | data.draw(st.integers(0, host_bits(prefix.version, prefix.length)))
    length = data.draw(st.integers(prefix.length, bits))
    assert prefix.covers(Prefix(prefix.version, inside >> (bits - length) << (bits - length), length))


@given(prefixes(), st.data())
def test_host_bits_are_refused_with_the_network_that_was_meant(prefix: Prefix, data: st.DataObject) -> None:
    free = host_bits(prefix.version, prefix.length)
    if not free:
        return
    address = prefix.address | data.draw(st.integers(1, free))
    text = f"{format_address(prefix.version, address)}/{prefix.length}"
    with pytest.raises(ValueError, match="has host bits set") as raised:
        parse_prefix(text)
    assert str(raised.value).endswith(f"the network is {prefix}")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::1/128", "::1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_text_becomes_canonical(text: str, canonical: str) -> None:
    assert str(parse_prefix(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/24",
        "localhost",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.07",
        "203.0.113.7 ",
        " 203.0.113.7",
        "203.0.113.7\n",
        "203.0.113.7\0",
        "203.0.113.7,203.0.113.8",
        "203.0.113.1-203.0.113.9",
        "0x7f.0.0.1",
        "2130706433",
        "::1::",
        "fe80::1%eth0",
        "2001:db8::g",
        "[::1]",
        "٢٠٣.0.113.7",
        "\ud800",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv4 or IPv6 address or CIDR"):
        parse_prefix(text)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("0.0.0.0/33", 32),
        ("0.0.0.0/", 32),
        ("0.0.0.0/-1", 32),
        ("0.0.0.0/+8", 32),
        ("0.0.0.0/8 ", 32),
        ("0.0.0.0/255.0.0.0", 32),
        ("0.0.0.0/0/0", 32),
        ("0.0.0.0/0008", 32),
        ("0.0.0.0/٨", 32),
        ("::/129", 128),
        ("::/", 128),
        ("::/" + "9" * 5000, 128),
    ],
)
def test_a_prefix_length_beyond_the_address_is_refused(text: str, bits: int) -> None:
    with pytest.raises(ValueError, match=f"the prefix length must be 0 to {bits}$"):
        parse_prefix(text)


def test_prefixes_sort_with_the_outer_before_the_inner() -> None:
    texts = ["10.0.0.0/16", "10.0.0.0/8", "10.0.0.0", "9.0.0.0/8", "::/0"]
    assert [str(each) for each in sorted(map(parse_prefix, texts))] == [
        "9.0.0.0/8",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0",
        "::/0",
    ]
