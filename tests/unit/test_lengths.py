"""Length bits: the bucket of every address of a prefix has its bit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firewall.layout import C
from firewall.lengths import LengthBit, bucket6, length_bit

WORDS = st.integers(0, 2**32 - 1)


@given(WORDS, st.integers(0, 32), WORDS)
def test_an_ipv4_prefix_has_its_bit_in_the_buckets_of_just_its_addresses(
    address: int, length: int, other: int
) -> None:
    mask = (1 << (32 - length)) - 1
    bit = length_bit(4, 2, address & ~mask, length, 12)
    assert (bit.version, bit.scope, bit.length) == (4, 2, length)
    for each in (address & ~mask, address, address | mask):
        assert bit.first <= each >> 16 < bit.first + bit.buckets
    shorter = min(length, 16)
    is_near = other >> (32 - shorter) == address >> (32 - shorter)
    assert (bit.first <= other >> 16 < bit.first + bit.buckets) == is_near


def test_an_ipv4_prefix_of_length_0_is_in_every_bucket() -> None:
    assert length_bit(4, 0, 0, 0, 12) == LengthBit(4, 0, 0, 0, 65536)


@given(st.integers(0, 2**128 - 1), st.integers(C["BUCKET6_SHORTEST"], 128), st.sampled_from((12, 16)))
def test_an_ipv6_prefix_has_its_bit_in_the_one_bucket_of_its_addresses(
    address: int, length: int, bits: int
) -> None:
    masked = address >> (128 - length) << (128 - length)
    bit = length_bit(6, 1, masked, length, bits)
    assert bit == LengthBit(6, 1, length, bucket6(address >> 96, bits), 1)
    assert 0 <= bit.first < 1 << bits


@given(st.integers(0, 2**31 - 1), st.integers(0, C["BUCKET6_SHORTEST"] - 1))
def test_a_short_ipv6_prefix_has_no_bucket(top: int, length: int) -> None:
    address = (top << 97) >> (128 - length) << (128 - length)
    assert length_bit(6, 3, address, length, 12) == LengthBit(6, 3, length, 0, 0)


@given(WORDS, st.sampled_from((12, 16)))
def test_the_bucket_is_the_product_of_32_bits(top: int, bits: int) -> None:
    product = (top * 0x9E3779B1) % 2**32
    assert bucket6(top, bits) == product // 2 ** (32 - bits)
