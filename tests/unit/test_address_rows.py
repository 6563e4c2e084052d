"""Rows of IPv4 entries in plain memory: who finds a row, and what packets may see while an entry changes in its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from firewall.datapath import Key
from firewall.kernel.address_rows import NOWHERE, WAYS, AddressRows, number_of, prefixes_of
from firewall.kernel.address_table import FRONT_ENTRIES, _buckets_for, _room_of
from firewall.kernel.keys import key_records
from firewall.kernel.row_memory import RowMemory
from firewall.layout import ADDRESS_ENTRY, FRONT_ROW, RANK_NONE
from firewall.presence import numbers4

BEFORE, AFTER, OTHER = 10, 20, 30
EPOCH = 7
Words = tuple[int, int, int]


def made(buckets: int = 16, ways: int = WAYS) -> tuple[AddressRows, npt.NDArray[np.void]]:
    memory = np.zeros(buckets * ways, FRONT_ROW)
    return AddressRows(buckets, ways, RowMemory(memory)), memory


def numbers(count: int, seed: int = 1) -> npt.NDArray[np.uint64]:
    addresses = np.random.default_rng(seed).choice(1 << 32, count, replace=False).astype(np.uint64)
    return addresses << np.uint64(1) | np.uint64(1)


def entries(
    count: int, rank: int = BEFORE, since: int = 0, old_rank: int = RANK_NONE
) -> npt.NDArray[np.void]:
    values = np.zeros(count, ADDRESS_ENTRY)
    values["rank"], values["since"], values["old_rank"], values["handle"] = rank, since, old_rank, 5
    return values


def nobody() -> None:
    raise AssertionError("waited for packets")


@pytest.mark.parametrize("ways", [1, WAYS])
def test_what_was_put_is_found_and_no_bucket_takes_more_than_it_has_rows(ways: int) -> None:
    rows, _ = made(64, ways)
    some = numbers(200)
    values = entries(200)
    values["handle"] = np.arange(200)
    taken = rows.put(some, values)
    of_bucket = np.bincount(rows._buckets_of(some), minlength=64)
    assert np.count_nonzero(taken) == of_bucket.clip(max=ways).sum() < 200
    places = rows.find(some)
    assert ((places >= 0) == taken).all() and len(set(places[taken].tolist())) == np.count_nonzero(taken)
    assert (rows.values(places[taken])["handle"] == np.flatnonzero(taken)).all()
    assert [rows.find_one(number) for number in some.tolist()] == places.tolist()
    assert not rows.put(some[~taken], values[~taken]).any()
    found = np.concatenate([each for each, _, _ in rows.content(part=64)])
    assert set(found.tolist()) == set(some[taken].tolist())


def test_one_finds_a_row_as_many_do() -> None:
    rows, _ = made()
    same, _ = made()
    for number in numbers(80).tolist():
        one = rows.put_one(number, entries(1).tobytes())
        assert one == same.put(np.array([number], np.uint64), entries(1))[0]
        assert rows.find_one(number) == same.find(np.array([number], np.uint64))[0]


def test_a_cleared_row_is_taken_again_when_packets_have_passed() -> None:
    rows, _ = made(1)
    some = numbers(WAYS + 1)
    assert rows.put(some[:WAYS], entries(WAYS)).all()
    rows.clear(rows.find(some[:1]))
    assert rows.find_one(int(some[0])) == NOWHERE and rows.has_left
    assert not rows.put(some[WAYS:], entries(1))[0] and not rows.put_one(
        int(some[WAYS]), entries(1).tobytes()
    )
    rows.passed()
    assert rows.put(some[WAYS:], entries(1))[0] and not rows.has_left


def test_numbers_are_prefixes_and_back() -> None:
    keys = [Key(4, 0, 0, 0), Key(4, 3, 32, 0xFFFFFFFF), Key(4, 1, 1, 1 << 31), Key(4, 2, 17, 0x0A0B8000)]
    records = key_records(4, keys)
    assert numbers4(records).tolist() == [number_of(key) for key in keys]
    assert (prefixes_of(numbers4(records)) == records).all()


@pytest.mark.parametrize("wrong", ["elsewhere", "twice", "nonsense"])
def test_what_no_packet_meets_is_not_told_and_is_cleared(wrong: str) -> None:
    rows, memory = made()
    some = numbers(20)
    taken = rows.put(some, entries(20))
    free = np.flatnonzero(memory["key"] == 0)
    if wrong == "elsewhere":
        away = [place for place in free.tolist() if place // WAYS != rows.find_one(int(some[0])) // WAYS]
        memory["key"][away[0]] = some[0]
    elif wrong == "twice":
        bucket = next(int(place) // WAYS for place in free if memory["key"][place // WAYS * WAYS])
        memory["key"][bucket * WAYS + WAYS - 1] = memory["key"][bucket * WAYS]
    else:
        memory["key"][free[0]] = 1 << 60
    met = [number for each, _, _ in rows.content() for number in each.tolist()]
    assert sorted(met) == sorted(some[taken].tolist())
    rows.clear_unmet()
    assert np.count_nonzero(memory["key"]) == len(met)


# -- what packets see while an entry changes


def seen(words: Words, epoch: int) -> int:
    since, rank, old_rank = words
    return rank if epoch >= since else old_rank


def watched(memory: npt.NDArray[np.void], change: Callable[[Callable[[], None]], None]) -> list[Words]:
    """The words of the first entry before a change, whenever it waits for packets, and after it."""
    states: list[Words] = []

    def note() -> None:
        entry = memory["entry"][memory["key"] != 0][0]
        states.append((int(entry["since"]), int(entry["rank"]), int(entry["old_rank"])))

    note()
    change(note)
    note()
    return states


def mixtures(states: list[Words]) -> set[Words]:
    """What packets may read that are judged between two waits: each word as it was or as it becomes, in any order."""
    return {
        words
        for one, other in itertools.pairwise(states)
        for words in itertools.product(*zip(one, other, strict=True))
    }


START = {
    "settled": (0, BEFORE, BEFORE),
    "of a change before": (EPOCH, BEFORE, RANK_NONE),
    "changed before": (EPOCH - 1, BEFORE, OTHER),
}


def with_entry(words: Words) -> tuple[AddressRows, npt.NDArray[np.void], npt.NDArray[np.int64]]:
    rows, memory = made()
    since, rank, old_rank = words
    number = numbers(1)
    rows.put(number, entries(1, rank, since, old_rank))
    return rows, memory, rows.find(number)


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("after", [AFTER, RANK_NONE], ids=["changes", "goes"])
def test_a_change_that_comes_with_an_epoch_is_seen_with_it_alone_whatever_a_packet_reads_first(
    start: str, after: int
) -> None:
    rows, memory, places = with_entry(START[start])
    new = entries(1, after, EPOCH + 1, BEFORE)
    states = watched(memory, lambda note: rows.rewrite(places, new, np.array([True]), EPOCH, note))
    assert {seen(words, EPOCH) for words in mixtures(states)} == {BEFORE}
    assert seen(states[-1], EPOCH + 1) == after
    # Packets that are judged while the epoch moves read the last state alone: a change settles before the next.
    assert len(states) == 4


@pytest.mark.parametrize("start", START)
def test_a_change_at_once_is_seen_whole_and_waits_for_nobody(start: str) -> None:
    rows, memory, places = with_entry(START[start])
    states = watched(
        memory, lambda _: rows.rewrite(places, entries(1, AFTER), np.array([True]), EPOCH, nobody)
    )
    # Both ranks are one word; `since` stays.
    before, after = states
    assert before[0] == after[0] and seen(before, EPOCH) == BEFORE and after[1:] == (AFTER, AFTER)


def test_what_waits_for_an_epoch_that_never_came_is_taken_back_unseen() -> None:
    rows, memory, places = with_entry((EPOCH + 1, AFTER, BEFORE))
    states = watched(
        memory, lambda note: rows.rewrite(places, entries(1, BEFORE), np.array([True]), EPOCH, note)
    )
    assert {seen(words, EPOCH) for words in mixtures(states)} == {BEFORE}
    assert states[-1] == (0, BEFORE, BEFORE)


# -- hits


def test_hits_are_those_since_the_prefix_is_this_rules_and_none_is_lost() -> None:
    rows, memory, places = with_entry(START["settled"])
    (at,) = places.tolist()

    def hit(times: int) -> None:
        memory["entry"]["packets"][at] += times
        memory["entry"]["bytes"][at] += 100 * times

    def hits() -> tuple[int, int]:
        values = rows.values(places)
        return int(values["packets"][0]), int(values["bytes"][0])

    hit(3)
    rows.rewrite(places, entries(1, AFTER), np.array([True]), EPOCH, nobody)
    hit(1)
    assert hits() == (4, 400)
    rows.rewrite(places, entries(1, OTHER), np.array([False]), EPOCH, nobody)
    assert hits() == (0, 0)
    hit(2)
    assert hits() == (2, 200)
    given = entries(1, OTHER)
    given["packets"], given["bytes"] = 9, 90
    rows.rewrite(places, given, np.array([False]), EPOCH, nobody)
    assert hits() == (9, 90), "what a change that is taken back had found"
    rows.add_hits(places, np.array([100], np.uint64), np.array([1000], np.uint64))
    hit(1)
    assert hits() == (110, 1190), "more than the row itself ever counted"
    assert memory["entry"]["packets"][at] == 7


# -- sizes


@pytest.mark.parametrize("entries_", [FRONT_ENTRIES + 1, 5000, 70_000, 1_000_000, 3_333_333])
def test_rows_are_three_for_two_entries_or_a_quarter_more(entries_: int) -> None:
    buckets = _buckets_for(entries_)
    share = buckets * WAYS / entries_
    assert 1.5 <= share <= 1.5 * 1.25 or buckets == 1024
    assert _room_of(buckets) >= entries_
    assert _buckets_for(_room_of(buckets) + 1) > buckets


def test_of_random_hosts_nine_in_ten_find_a_row() -> None:
    count = 100_000
    rows, _ = made(_buckets_for(count))
    assert np.count_nonzero(rows.put(numbers(count), entries(count))) > 0.915 * count
    fullest, _ = made(count // 3)
    assert np.count_nonzero(fullest.put(numbers(count), entries(count))) > (1 - 1 / 8) * count
