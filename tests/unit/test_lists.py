"""Lists in every format that people have them in: what is read, what is told, what is refused."""

from __future__ import annotations

import csv
import io
import json
import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.address import BITS, Prefix, format_address
from firewall.errors import InvalidInput
from firewall.lists.collector import Manner, ReadList
from firewall.lists.ipv4_text import parse_ipv4
from firewall.lists.ranges import prefixes_of
from firewall.lists.reading import FORMATS, ListReader, format_of, read_list

NOW = 1_800_000_000.0
MANNER = Manner(NOW)
STRICT = Manner(NOW, strict=True)


def entries(found: ReadList) -> list[tuple[str, float, str]]:
    """Address, end (0: stays), comment; IPv4 before IPv6, in the list's order."""
    told = []
    for each in found.columns:
        for row in range(len(each)):
            address = int.from_bytes(each.prefixes.addresses[row].tobytes(), "big")
            prefix = Prefix(each.version, address, int(each.prefixes.lengths[row]))
            end = 0.0 if each.expires_at is None else float(each.expires_at[row])
            told.append((str(prefix), end, "" if each.comments is None else each.comments[row]))
    return told


def addresses(found: ReadList) -> list[str]:
    return [address for address, _, _ in entries(found)]


def read(text: str, form: str | None = None, manner: Manner = MANNER, name: str = "") -> ReadList:
    return read_list(text.encode(), manner, form, name)


# --- plain -------------------------------------------------------------------------------------------------


def test_plain_text_with_comments_blank_lines_and_both_families() -> None:
    text = (
        "# a feed\n; another comment\n203.0.113.7\n\n 198.51.100.0/24 # inline\n2001:db8::/32 ; SBL1\r\n::1\n"
    )
    found = read(text)
    assert found.format == "plain"
    assert addresses(found) == ["203.0.113.7", "198.51.100.0/24", "2001:db8::/32", "::1"]
    assert (found.bad, found.host_bits, found.problems) == (0, 0, ())
    assert all(each.expires_at is None and each.comments is None for each in found.columns)


def test_bad_lines_are_counted_with_their_numbers_and_the_rest_is_read() -> None:
    found = read("192.0.2.1\nexample.org\n\n192.0.2.256\n192.0.2.2\n")
    assert addresses(found) == ["192.0.2.1", "192.0.2.2"]
    assert [each.pointer for each in found.problems] == ["/line/2", "/line/4"]
    assert found.bad == 2 and "example.org" in found.problems[0].detail


def test_strict_refuses_the_whole_list_and_names_its_bad_lines() -> None:
    with pytest.raises(InvalidInput) as caught:
        read("192.0.2.1\nexample.org\n10.0.0.1/8\n", manner=STRICT)
    assert caught.value.code == "invalid_list"
    assert [each.pointer for each in caught.value.problems] == ["/line/2", "/line/3"]
    assert "10.0.0.0/8" in caught.value.problems[1].detail


def test_host_bits_are_masked_and_counted() -> None:
    found = read("10.1.2.3/8\n2001:db8::1/32\n192.0.2.0/24\n")
    assert addresses(found) == ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
    assert (found.host_bits, found.bad) == (2, 0)
    # The slow way, because of the bad line, says the same.
    again = read("10.1.2.3/8\n2001:db8::1/32\n192.0.2.0/24\nx\n")
    assert (addresses(again), again.host_bits, again.bad) == (addresses(found), 2, 1)


def test_only_the_first_hundred_bad_lines_are_told() -> None:
    found = read("x\n" * 250 + "192.0.2.1\n")
    assert (found.bad, len(found.problems), found.entries) == (250, 100, 1)


def test_a_ttl_is_for_entries_that_say_nothing_of_their_time() -> None:
    text = '{"ip":"192.0.2.1"}\n{"ip":"192.0.2.2","ttl":"1h"}\n'
    assert [end for _, end, _ in entries(read(text, manner=Manner(NOW, ttl_s=60)))] == [NOW + 60, NOW + 3600]


def test_a_list_that_names_too_much_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        read("192.0.2.1\n" * 11, manner=Manner(NOW, most_entries=10))
    assert caught.value.code == "list_too_long"


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_a_list_is_the_same_however_it_is_cut_into_parts(cut: int) -> None:
    rng = random.Random(cut)
    lines = [f"10.{rng.randrange(256)}.{rng.randrange(256)}.0/24 ; {i}" for i in range(2000)]
    content = "\r\n".join(lines).encode()
    reader = ListReader(MANNER)
    for at in range(0, len(content), cut):
        reader.feed(content[at : at + cut])
    assert addresses(reader.end()) == [line.partition(" ")[0] for line in lines]


def test_lines_are_numbered_across_chunks() -> None:
    lines = ["192.0.2.1"] * 60_000
    lines[59_999] = "x"
    assert read("\n".join(lines)).problems[0].pointer == "/line/60000"


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b\x08\0\0", b"PK\x03\x04", b"<!DOCTYPE html><p>404", b"  <html>", b"1.2.3.4\0", b"<?xml ?>"],
)
def test_what_is_no_list_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_list(content, MANNER)
    assert caught.value.code == "invalid_list"


def test_bytes_that_are_no_text_make_their_line_a_bad_one() -> None:
    found = read_list(b"192.0.2.1\n\xff\xfe\n192.0.2.2\n", MANNER)
    assert (addresses(found), found.problems[0].pointer) == (["192.0.2.1", "192.0.2.2"], "/line/2")


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    with pytest.raises(InvalidInput):
        read("1" * (2 << 20))


# --- ranges ------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from([4, 6]))
def test_a_range_is_split_into_the_prefixes_that_the_standard_library_makes(
    data: st.DataObject, version: int
) -> None:
    kind = IPv4Address if version == 4 else IPv6Address
    whole = st.integers(0, (1 << BITS[version]) - 1)
    first, last = sorted((data.draw(whole), data.draw(whole)))
    text = f"{format_address(version, first)}-{format_address(version, last)}"
    expected = list(summarize_address_range(kind(first), kind(last)))
    assert [ip_network(str(each)) for each in prefixes_of(text).prefixes] == expected
    assert len(expected) <= 2 * BITS[version]


@pytest.mark.parametrize(
    "text", ["1.2.3.9-1.2.3.4", "1.2.3.4-::1", "1.2.3.0/24-1.2.4.0", "1.2.3.4-", "-1.2.3.4", "1.2.3.4-x"]
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        prefixes_of(text)


def test_ranges_in_a_list() -> None:
    found = read("192.0.2.0-192.0.2.5\n192.0.2.9\n")
    assert addresses(found) == ["192.0.2.0/30", "192.0.2.4/31", "192.0.2.9"]


# --- the fast way ------------------------------------------------------------------------------------------

LINE = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 40)).map(lambda t: f"{t[0]}/{t[1]}"),
    st.text(alphabet="0123456789./", max_size=18),
    st.just(""),
)


@given(st.lists(LINE, max_size=8))
def test_the_fast_way_takes_what_the_slow_way_takes_and_finds_the_same(lines: list[str]) -> None:
    expected: list[Prefix] | None = []
    for line in filter(None, lines):
        try:
            expected = None if expected is None else [*expected, *prefixes_of(line).prefixes]
        except ValueError:
            expected = None
    parsed = parse_ipv4("".join(f"{line}\n" for line in lines).encode())
    if expected is None or not lines:
        assert parsed is None
        return
    assert parsed is not None
    found = [
        (int(length), int.from_bytes(row.tobytes(), "big") >> (32 - int(length)) << (32 - int(length)))
        for length, row in zip(*parsed, strict=True)
    ]
    assert found == [(each.length, each.address) for each in expected]


# --- ipset -------------------------------------------------------------------------------------------------

IPSET = """create bad hash:net family inet hashsize 1024 maxelem 65536 timeout 600 comment bucketsize 12 initval 0x1
add bad 192.0.2.0/24 timeout 0
add bad 198.51.100.7 timeout 42 comment "a scanner; # really"
add bad 203.0.113.0-203.0.113.2
create bad6 hash:ip family inet6 hashsize 1024 maxelem 65536 comment
add bad6 2001:db8::1 comment "six"
"""


def test_ipset_save_with_times_comments_ranges_and_a_set_of_each_family() -> None:
    found = read(IPSET)
    assert (found.format, found.bad) == ("ipset", 0)
    assert entries(found) == [
        ("192.0.2.0/24", 0.0, ""),
        ("198.51.100.7", NOW + 42, "a scanner; # really"),
        ("203.0.113.0/31", NOW + 600, ""),
        ("203.0.113.2", NOW + 600, ""),
        ("2001:db8::1", 0.0, "six"),
    ]


def test_what_sets_of_ipset_have_that_ours_have_not_is_a_bad_line() -> None:
    text = (
        "create a hash:net family inet\nadd a 192.0.2.0/24\nadd a 192.0.2.7 nomatch\nadd b 192.0.2.9\n"
        "add a 192.0.2.1,tcp:80\nadd a 192.0.2.3 timeout soon\nadd a 192.0.2.4 volume 3\nswap a b\n"
        "create c hash:ip,port family inet\n"
    )
    found = read(text)
    assert addresses(found) == ["192.0.2.0/24"]
    assert [each.pointer for each in found.problems] == [f"/line/{n}" for n in range(3, 10)]
    assert "allow rule" in found.problems[0].detail and "ipset save" in found.problems[1].detail


# --- nft ---------------------------------------------------------------------------------------------------

ELEMENTS = [
    "192.0.2.1",
    {"prefix": {"addr": "198.51.100.0", "len": 24}},
    {"range": ["203.0.113.4", "203.0.113.7"]},
    {"elem": {"val": "192.0.2.9", "timeout": 600, "expires": 42, "comment": 'say \\ "x" ], }'}},
    {"elem": {"val": {"prefix": {"addr": "2001:db8::", "len": 32}}, "counter": {"packets": 0, "bytes": 0}}},
]
NFT = {
    "nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"set": {"family": "inet", "name": "a", "table": "t", "type": "ipv4_addr", "flags": ["interval"],
                 "elem": ELEMENTS}},
        {"set": {"family": "inet", "name": "empty", "table": "t", "type": "ipv4_addr", "handle": 4}},
    ]
}  # fmt: skip
NFT_FOUND = [
    ("192.0.2.1", 0.0, ""),
    ("198.51.100.0/24", 0.0, ""),
    ("203.0.113.4/30", 0.0, ""),
    ("192.0.2.9", NOW + 42, 'say \\ "x" ], }'),
    ("2001:db8::/32", 0.0, ""),
]


@pytest.mark.parametrize("indent", [None, 2])
def test_nft_json_with_prefixes_ranges_times_and_comments(indent: int | None) -> None:
    found = read(json.dumps(NFT, indent=indent))
    assert (found.format, found.bad) == ("nft", 0)
    assert sorted(entries(found)) == sorted(NFT_FOUND)


def test_a_large_nft_document_is_read_in_pieces_wherever_it_is_cut() -> None:
    many = [{"elem": {"val": f"10.0.{i >> 8}.{i & 255}", "comment": f'"{i}\\'}} for i in range(20_000)]
    document = {"nftables": [{"metainfo": {}}, {"set": {"elem": many}}]}
    content = json.dumps(document).encode()
    for cut in (1000, 262_144, 300_001):
        reader = ListReader(MANNER)
        for at in range(0, len(content), cut):
            reader.feed(content[at : at + cut])
        found = reader.end()
        assert found.entries == 20_000 and found.bad == 0
        assert entries(found)[19_999][2] == '"19999\\'


def test_an_nft_document_that_breaks_off_is_refused_wherever_it_does() -> None:
    content = json.dumps(NFT).encode()
    for end in range(20, len(content)):
        with pytest.raises(InvalidInput):
            read_list(content[:end], MANNER, "nft")


def test_an_nft_document_with_two_sets_is_refused() -> None:
    sets = [{"set": {"name": "bad", "elem": ["192.0.2.1"]}}, {"set": {"name": "good", "elem": ["192.0.2.2"]}}]
    with pytest.raises(InvalidInput) as caught:
        read(json.dumps({"nftables": sets}))
    assert "more than one set" in caught.value.detail and "nft -j list set" in caught.value.hint


def test_elements_of_nft_that_are_no_addresses_are_bad() -> None:
    document = {"nftables": [{"set": {"elem": [22, {"concat": ["192.0.2.1", 22]}, "192.0.2.1", "tcp"]}}]}
    found = read(json.dumps(document))
    assert addresses(found) == ["192.0.2.1"]
    assert [each.pointer for each in found.problems] == ["/element/1", "/element/2", "/element/4"]


# --- CSV ---------------------------------------------------------------------------------------------------


def test_csv_finds_its_columns_by_the_header() -> None:
    text = '# abuse\nid,IP Address,Reason,ttl\n1,192.0.2.1,"ssh, brute force",1h\n2,2001:db8::/32,,\n'
    found = read(text)
    assert found.format == "csv"
    assert entries(found) == [("192.0.2.1", NOW + 3600, "ssh, brute force"), ("2001:db8::/32", 0.0, "")]


def test_csv_finds_the_column_by_what_is_in_it() -> None:
    assert addresses(read("1,x,192.0.2.1\n2,y,192.0.2.2\n")) == ["192.0.2.1", "192.0.2.2"]
    # A header that says nothing of addresses.
    assert addresses(read("first_seen,host_thing\n2026-01-01,192.0.2.1\n", "csv")) == ["192.0.2.1"]


def test_csv_with_first_and_last_address() -> None:
    text = "Start\tEnd\tNetmask\tAttacks\n192.0.2.0\t192.0.2.255\t24\t7\n"
    assert addresses(read(text)) == ["192.0.2.0/24"]


def test_bad_rows_of_csv_are_told_by_line() -> None:
    found = read("ip,comment\n192.0.2.1,a\nnothing,b\n,c\n192.0.2.2,d\n")
    assert addresses(found) == ["192.0.2.1", "192.0.2.2"]
    assert sorted(each.pointer for each in found.problems) == ["/line/3", "/line/4"]


# --- NDJSON and Spamhaus -----------------------------------------------------------------------------------


def test_ndjson_with_times_and_comments() -> None:
    text = (
        '{"address":"192.0.2.1","ttl":90,"comment":"a"}\n{"cidr":"192.0.2.0/25","expires_at":"2030-01-01T00:00:00Z"}\n'
        '{"ip":"2001:db8::1","more":[1]}\n\n{"ip":"192.0.2.8","expires_at":"2020-01-01T00:00:00Z"}\n'
    )
    found = read(text)
    assert entries(found) == [
        ("192.0.2.1", NOW + 90, "a"),
        ("192.0.2.0/25", 1893456000.0, ""),
        ("2001:db8::1", 0.0, ""),
    ]
    assert (found.expired, found.bad) == (1, 0)


def test_bad_lines_of_ndjson() -> None:
    text = '{"ip":"192.0.2.1"}\n{"ip":\n[]\n{"asn":1}\n{"ip":"192.0.2.1","ttl":-1}\n{"ip":5}\n{"ip":"x"}\n'
    found = read(text, "ndjson")
    assert addresses(found) == ["192.0.2.1"]
    assert sorted(int(each.pointer.removeprefix("/line/")) for each in found.problems) == [2, 3, 4, 5, 6, 7]


SPAMHAUS = (
    '{"cidr":"192.0.2.0/24","sblid":"SBL1","rir":"arin"}\n{"cidr":"2001:db8::/32","sblid":"SBL2"}\n'
    '{"type":"metadata","timestamp":1738947360,"size":100,"records":2,"copyright":"x"}\n'
)


@pytest.mark.parametrize("form", [None, "ndjson", "spamhaus"])
def test_spamhaus_drop(form: str | None) -> None:
    found = read(SPAMHAUS, form)
    assert entries(found) == [("192.0.2.0/24", 0.0, "SBL1"), ("2001:db8::/32", 0.0, "SBL2")]
    assert found.bad == 0


def test_a_truncated_spamhaus_list_is_refused() -> None:
    first, second, last = SPAMHAUS.splitlines(keepends=True)
    for text in (first, first + second, first + last):
        with pytest.raises(InvalidInput):
            read(text, "spamhaus")


# --- which format ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", "plain"), ("# x\n\n192.0.2.1\n", "plain"), ("192.0.2.1 # a,b\n", "plain"),
        ("create a hash:ip \n", "ipset"),
        ("add a 192.0.2.1\n", "ipset"), ('{"nftables": []}', "nft"), ('\n{"ip":"x"}', "ndjson"),
        ("ip,comment\n", "csv"), ("a\tb\n", "csv"), ("192.0.2.1\t\n", "plain"),
    ],
)  # fmt: skip
def test_the_format_is_told_by_how_a_list_begins(text: str, form: str) -> None:
    assert format_of(text.encode()) == form


def test_the_format_is_told_by_media_type_or_name() -> None:
    assert ListReader(MANNER, None, "text/csv").end().format == "csv"
    assert ListReader(MANNER, None, "text/plain", "https://x/a.NDJSON").end().format == "ndjson"
    assert ListReader(MANNER, "plain", "text/csv", "a.csv").end().format == "plain"


@pytest.mark.parametrize("form", FORMATS)
@given(content=st.binary(max_size=300))
def test_no_bytes_make_a_reader_fail_in_another_way_than_it_should(form: str, content: bytes) -> None:
    try:
        found = read_list(content, MANNER, form)
    except InvalidInput:
        return
    assert found.bad >= len(found.problems)
    for address in addresses(found):
        ip_network(address)


PREFIXES = st.lists(st.ip_addresses().map(lambda a: str(ip_address(a))), min_size=1, max_size=6, unique=True)


@given(PREFIXES, st.data())
def test_every_format_tells_the_same_addresses(listed: list[str], data: st.DataObject) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([["n", "address"], *([i, each] for i, each in enumerate(listed))])
    texts = {
        "plain": "\n".join(listed),
        "ipset": "\n".join(f"add {'six' if ':' in each else 'four'} {each}" for each in listed),
        "nft": json.dumps({"nftables": [{"set": {"elem": listed}}]}),
        "csv": table.getvalue(),
        "ndjson": "\n".join(json.dumps({"ip": each}) for each in listed),
    }
    for form, text in texts.items():
        found = read(text, form)
        assert {ip_network(each) for each in addresses(found)} == {ip_network(each) for each in listed}, form
        assert found.bad == 0, form
