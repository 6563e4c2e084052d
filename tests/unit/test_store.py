"""The store on a real file: what is committed is there after a restart, what is not never was."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.address import parse_prefix
from firewall.errors import StoreFailed
from firewall.hits import Hits, Reset
from firewall.rule import Rule, rule_from_fields
from firewall.schema import VERSION
from firewall.store import Block, InterfaceRequest, InterfaceTotal, Record, Store, decode, encode
from firewall.view import RuleQuery
from tests.random_rules import random_rules
from tests.unit.failing_database import fail_on

NOW = 1_700_000_000.0


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "state" / "rules.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def record(handle: int, **fields: Any) -> Record:
    return Record(handle, rule_from_fields(fields, f"r{handle}", NOW), NOW, NOW + 1)


def write(store: Store, *records: Record, deleted: tuple[int, ...] = ()) -> None:
    with store.transaction():
        store.write_rules(deleted, records)


def write_block(store: Store, first: int, texts: list[str], uid: str = "0123abcd") -> Block:
    """Inside a transaction. Texts of one IP version."""
    prefixes = [parse_prefix(text) for text in texts]
    version, size = prefixes[0].version, 4 if prefixes[0].version == 4 else 16
    block = Block(first, len(texts), uid, version, "drop", 1000, "ingress", NOW)
    packed = b"".join(prefix.address.to_bytes(size, "big") for prefix in prefixes)
    addresses = np.frombuffer(packed, np.uint8).reshape(-1, size)
    store.write_block(block, np.array([prefix.length for prefix in prefixes], np.uint8), addresses)
    return block


def handles(records: list[Record]) -> list[int]:
    return [each.handle for each in records]


def page(store: Store, among: list[int] | None = None, **query: Any) -> list[int]:
    """Handles of all records that fit; the total must agree."""
    records, total = store.page(RuleQuery(**query), 0, 100, among)
    assert total == len(records)
    return handles(records)


# --- opening


def test_a_new_store_is_empty_and_private(path: Path, store: Store) -> None:
    assert (store.count(), store.revision, store.next_handle) == (0, 0, 1)
    assert list(store.all()) == [] and store.interfaces() == {} and store.interface_totals() == []
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_commit_is_on_disk_before_it_returns(path: Path, store: Store) -> None:
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    write(store, record(1))
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as other:
        assert other.execute("SELECT id FROM rules").fetchall() == [("r1",)]


def test_every_store_has_an_identity_of_its_own_that_stays(directory: Path) -> None:
    one, other = Store(directory / "a.db"), Store(directory / "b.db")
    assert one.identity != other.identity
    assert Store(directory / "a.db").identity == one.identity


def test_everything_is_there_after_a_restart(path: Path, store: Store) -> None:
    write(store, record(1, sources="10.0.0.1"), record(2, destination_ports=[80], ttl=60))
    with store.transaction():
        store.write_interface(InterfaceRequest("eth0", True, "generic", True, False), "eth0")
        store.add_hits([(1, Hits(1, 100, 5.0))])
        store.add_interface_hits([InterfaceTotal("eth0", 0, 1, 1, 2, 200)])
    store.close()
    again = Store(path)
    assert list(again.all()) == [record(1, sources="10.0.0.1"), record(2, destination_ports=[80], ttl=60)]
    assert (again.revision, again.next_handle, again.identity) == (1, 3, store.identity)
    assert again.interfaces() == {"eth0": InterfaceRequest("eth0", True, "generic", True, False)}
    assert again.hits([1, 2]) == {1: Hits(1, 100, 5.0)}
    assert again.interface_totals() == [InterfaceTotal("eth0", 0, 1, 1, 2, 200)]


# --- what cannot be opened


def refused(path: Path) -> StoreFailed:
    with pytest.raises(StoreFailed) as raised:
        list(Store(path).all())
    assert raised.value.hint
    return raised.value


def test_a_directory_that_cannot_be_made_is_named() -> None:
    assert "cannot make /proc/ebpf-fw" in refused(Path("/proc/ebpf-fw/rules.db")).detail


def test_a_file_in_the_place_of_the_directory_is_named(directory: Path) -> None:
    (directory / "state").write_text("")
    assert f"cannot make {directory / 'state'}" in refused(directory / "state" / "rules.db").detail


def test_a_database_that_cannot_be_written_is_refused(directory: Path) -> None:
    (directory / "rules.db").mkdir()
    assert "opening" in refused(directory / "rules.db").detail


def test_what_is_no_database_is_refused(directory: Path) -> None:
    (directory / "rules.db").write_bytes(b"not a database, although it is longer than a header" * 20)
    assert "file is not a database" in refused(directory / "rules.db").detail


def test_a_database_of_the_first_schema_is_taken_over_with_all_that_it_holds(
    path: Path, store: Store
) -> None:
    write(store, record(1))
    store.close()
    with sqlite3.connect(path) as first:
        first.executescript(
            "DROP TABLE resets; DROP INDEX rules_disabled; DROP INDEX rules_measured;"
            "DROP TABLE changes; DROP TABLE undo_rules; DROP TABLE undo_ranges; DROP TABLE undo_interfaces;"
            "DROP TABLE sets; DROP TABLE set_entries; DROP TABLE undo_sets; DROP TABLE undo_set_entries;"
            "DROP TABLE tokens; DROP TABLE audit;"
            "PRAGMA user_version = 1;"
        )
    first.close()
    again = Store(path)
    assert [each.handle for each in again.all()] == [1]
    assert again.resets() == {}
    with again.transaction():
        again.write_resets([(1, Reset(1, 2, 3.0))])
    again.close()
    assert Store(path).resets() == {1: Reset(1, 2, 3.0)}


@pytest.mark.parametrize("version", [VERSION + 1, 99])
def test_the_schema_of_another_version_is_left_alone(path: Path, store: Store, version: int) -> None:
    write(store, record(1))
    store.close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    assert f"has schema {version}, this version of ebpf-fw reads {VERSION} and older" in refused(path).detail
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM rules").fetchone() == (1,)


@pytest.mark.parametrize("key", ["identity", "revision", "next_handle"])
def test_a_database_without_its_numbers_is_damaged(path: Path, store: Store, key: str) -> None:
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM meta WHERE key = ?", (key,))
    other.close()
    assert f"is damaged: meta has no {key}" in refused(path).detail


def test_a_database_without_its_tables_is_refused(path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE meta")
    other.close()
    assert "no such table: meta" in refused(path).detail


@pytest.mark.parametrize("fields", ["", "{", "[]", '{"sources":["x"]}', '{"port":1}'])
def test_a_rule_that_is_damaged_is_named(path: Path, store: Store, fields: str) -> None:
    write(store, record(1), record(2))
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE rules SET fields = ? WHERE handle = 2", (fields,))
    other.close()
    assert "'r2'" in refused(path).detail


def test_damaged_pages_are_an_error_of_the_store(path: Path, store: Store) -> None:
    write(store, *(record(n, description="x" * 500) for n in range(1, 200)))
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    refused(path)


# --- transactions


def test_nothing_of_a_transaction_that_raises_is_there(store: Store) -> None:
    write(store, record(1))
    before = store.revision, store.next_handle

    def change() -> None:
        with store.transaction():
            store.write_rules([1], [record(2)])
            store.write_interface(InterfaceRequest("eth0", True, "auto", True, True), "eth0")
            store.add_hits([(2, Hits(1, 1, 1.0))])
            store.add_interface_hits([InterfaceTotal("eth0", 0, 1, 1, 2, 200)])
            write_block(store, 3, ["10.0.0.1"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert handles(list(store.all())) == [1]
    assert store.interfaces() == {} and store.hits([2]) == {} and store.interface_totals() == []
    assert (store.revision, store.next_handle) == before
    assert store.blocks() == [] and store.count() == 1
    write(store, record(2))
    assert handles(list(store.all())) == [1, 2]


@pytest.mark.parametrize(
    "statement", ["BEGIN", "DELETE FROM rules", "INSERT OR REPLACE INTO rules", "UPDATE meta", "COMMIT"]
)
def test_a_database_that_fails_anywhere_keeps_what_it_had(store: Store, statement: str) -> None:
    write(store, record(1))
    before = store.revision, store.next_handle
    with fail_on(store, statement), pytest.raises(StoreFailed, match="disk I/O error") as raised:
        write(store, record(2), deleted=(1,))
    assert raised.value.hint == "check the disk and the state directory's permissions"
    assert handles(list(store.all())) == [1]
    assert (store.revision, store.next_handle) == before
    write(store, record(2), deleted=(1,))
    assert handles(list(store.all())) == [2]


def test_a_rule_that_breaks_the_schema_undoes_the_rest(store: Store) -> None:
    write(store, record(1))
    bad = replace(record(3), created_at=None)  # type: ignore[arg-type]
    with pytest.raises(StoreFailed, match="NOT NULL constraint failed"):
        write(store, record(2), bad)
    assert handles(list(store.all())) == [1]


def test_readers_see_the_state_before_while_a_change_is_written(path: Path, store: Store) -> None:
    write(store, record(1))
    found: list[list[int]] = []

    def read() -> None:
        found.append(handles(list(store.all())))

    def in_another_thread() -> list[int]:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(5)
        return found.pop()

    with store.changing(), store.transaction():
        assert handles(list(store.all())) == [1]
        store.write_rules([1], [record(2)])
        assert in_another_thread() == [1]
        assert handles(list(store.all())) == [2], "the thread that writes sees what it wrote"
        with sqlite3.connect(path, timeout=0.1) as other:
            assert other.execute("SELECT handle FROM rules").fetchall() == [(1,)]
    assert in_another_thread() == [2]


# --- rules


@given(st.integers(0, 2**32))
def test_a_rule_is_read_again_as_written(seed: int) -> None:
    rng = random.Random(seed)
    for fields in random_rules(rng, 5, ("eth0", "veth*")):
        fields |= {"labels": {"a": "ä\"'\\\n\0", "": "x"}, "description": "ü\0", "ttl": rng.choice((None, 5))}
        rule = rule_from_fields(fields, fields["id"], NOW)
        assert decode(rule.id, encode(rule), rule.expires_at) == rule


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert encode(record(1).rule) == "{}"
    assert encode(record(1, sources="10.0.0.1").rule) == '{"sources":["10.0.0.1"]}'


def test_a_ttl_does_not_start_again_by_being_read(store: Store) -> None:
    write(store, record(1, ttl="1h"), record(2, expires_at="2100-01-01T00:00:00Z"))
    one, other = store.all()
    assert (one.rule.ttl_s, one.rule.expires_at) == (3600, NOW + 3600)
    assert (other.rule.ttl_s, other.rule.expires_at) == (None, 4102444800.0)


def test_a_record_takes_the_place_of_the_one_with_its_handle(store: Store) -> None:
    write(store, record(1), record(2))
    changed = replace(
        record(1, priority=5, enabled=False, action="allow", direction="both"), updated_at=NOW + 9
    )
    write(store, changed)
    assert list(store.all()) == [changed, record(2)]
    assert handles(store.disabled()) == [1]


def test_an_id_may_go_over_to_another_handle_in_one_change(store: Store) -> None:
    write(store, record(1))
    write(store, replace(record(2), rule=record(1).rule), deleted=(1,))
    found = store.by_id("r1")
    assert found is not None and found.handle == 2
    assert store.count() == 1


def test_rules_are_found_by_id(store: Store) -> None:
    write(store, *(record(n) for n in range(1, 1201)))
    assert store.by_id("r7") == record(7)
    assert store.by_id("R7") is None
    assert store.by_ids([f"r{n}" for n in range(1300)]).keys() == {f"r{n}" for n in range(1, 1201)}
    assert store.by_ids([]) == {}
    assert store.count() == 1200


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_all_rules_come_in_order_whatever_the_chunk(store: Store, chunk: int) -> None:
    write(store, record(5), record(1), record(3), record(900))
    assert handles(list(store.loose(chunk))) == handles(list(store.all())) == [1, 3, 5, 900]


def test_a_revision_is_a_change_of_rules(store: Store) -> None:
    for expected in (1, 2, 3):
        write(store, record(expected))
        assert store.revision == expected
    with store.transaction():
        store.write_interface(None, "eth0")
        store.add_hits([(1, Hits(1, 1, 1.0))])
    assert store.revision == 3


def test_a_handle_is_never_given_again(path: Path, store: Store) -> None:
    write(store, record(1), record(2))
    assert store.next_handle == 3
    write(store, deleted=(1, 2))
    assert store.next_handle == 3
    store.close()
    again = Store(path)
    assert again.count() == 0 and again.next_handle == 3
    write(again, record(7))
    write(again, record(3))
    assert again.next_handle == 8


# --- blocks


@pytest.fixture
def mixed(store: Store) -> Store:
    """Rules 1, 2, a block 3 to 7, rule 8, a block 9 and 10, of which 4 and 10 are deleted and 6 is a rule."""
    write(store, record(1), record(2, action="allow"))
    with store.transaction():
        write_block(store, 3, [f"10.0.0.{n}" for n in range(5)])
    write(store, record(8))
    with store.transaction():
        write_block(store, 9, ["2001:db8::/32", "2001:db8::1"], "89abcdef")
    write(store, replace(record(6, priority=5), rule=edited("import-0123abcd-3")), deleted=(4, 10))
    return store


def edited(rule_id: str) -> Rule:
    return rule_from_fields({"sources": "10.9.9.9", "action": "allow"}, rule_id, NOW)


def test_rules_of_blocks_are_rules(path: Path, mixed: Store) -> None:
    for _ in range(2):
        assert handles(list(mixed.all())) == [1, 2, 3, 5, 6, 7, 8, 9]
        assert mixed.count() == 8 and mixed.next_handle == 11
        found = mixed.by_id("import-0123abcd-2")
        assert found is not None and found.handle == 5
        assert found.rule == rule_from_fields({"sources": "10.0.0.2"}, "import-0123abcd-2", NOW)
        assert (mixed.by_id("import-0123abcd-3") or record(0)).rule == edited("import-0123abcd-3")
        network = mixed.by_id("import-89abcdef-0")
        assert network is not None and network.rule.fields()["sources"] == ["2001:db8::/32"]
        mixed.close()
        mixed = Store(path)


@pytest.mark.parametrize(
    "rule_id",
    [
        "import-0123abcd-1",
        "import-0123abcd-5",
        "import-0123abcd-02",
        "import-0123abcd-٢",
        "import-0123abcd-",
        "import-ffffffff-0",
        "import-89abcdef-1",
    ],
)
def test_what_a_block_does_not_hold_is_not_found(mixed: Store, rule_id: str) -> None:
    assert mixed.by_id(rule_id) is None
    assert mixed.by_ids([rule_id]) == {}


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_go_through_blocks(mixed: Store, limit: int) -> None:
    found = []
    for offset in range(0, 10, limit):
        records, total = mixed.page(RuleQuery(), offset, limit, None)
        assert total == 8 and len(records) <= limit
        found += handles(records)
    assert found == [1, 2, 3, 5, 7, 6, 8, 9], "a changed rule comes behind its block"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"action": "drop"}, [1, 3, 5, 7, 8, 9]),
        ({"action": "allow"}, [2, 6]),
        ({"direction": "egress"}, []),
        ({"enabled": True}, [1, 2, 3, 5, 7, 6, 8, 9]),
        ({"enabled": False}, []),
        ({"label": ("team", None)}, []),
        ({"among": [3, 4, 6, 9, 10, 99], "action": "drop"}, [3, 9]),
        ({"among": [3, 4, 6, 9, 10, 99]}, [3, 6, 9]),
    ],
)
def test_filters_are_asked_of_blocks_too(mixed: Store, query: dict[str, Any], expected: list[int]) -> None:
    assert page(mixed, **query) == expected


def test_a_block_is_there_for_readers_once_it_is_durable(store: Store) -> None:
    write(store, record(1))
    with store.transaction():
        block = write_block(store, 2, ["10.0.0.1", "10.0.0.2"])
        assert store.count() == 1
        assert store.page(RuleQuery(), 0, 10, None) == ([record(1)], 1)
        assert handles(list(store.all())) == [1]
    assert store.count() == 3 and store.blocks() == [block]


# --- listing


@pytest.fixture
def listed(store: Store) -> Store:
    write(
        store,
        record(1, sources="10.0.0.1", labels={"team": "web"}),
        record(2, action="allow", labels={"team": "db", "on.call": "x"}),
        record(3, direction="egress", enabled=False),
        record(4, direction="both", action="allow", labels={"team": ""}),
    )
    return store


def test_pages_are_in_order_of_creation_with_the_total(listed: Store) -> None:
    pages = [listed.page(RuleQuery(), offset, 3, None) for offset in (0, 3, 6)]
    assert [(handles(records), total) for records, total in pages] == [([1, 2, 3], 4), ([4], 4), ([], 4)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"direction": "ingress"}, [1, 2]),
        ({"direction": "egress"}, [3]),
        ({"direction": "both"}, [4]),
        ({"action": "drop"}, [1, 3]),
        ({"action": "allow"}, [2, 4]),
        ({"enabled": True}, [1, 2, 4]),
        ({"enabled": False}, [3]),
        ({"label": ("team", None)}, [1, 2, 4]),
        ({"label": ("team", "web")}, [1]),
        ({"label": ("team", "")}, [4]),
        ({"label": ("Team", None)}, []),
        ({"label": ("on.call", "x")}, [2]),
        ({"label": ("on", None)}, []),
        ({"label": ("missing", None)}, []),
        ({"label": ("team", None), "action": "allow", "direction": "both"}, [4]),
        ({"action": "allow", "enabled": False}, []),
    ],
)
def test_filters_are_all_asked(listed: Store, query: dict[str, Any], expected: list[int]) -> None:
    assert page(listed, **query) == expected


@pytest.mark.parametrize("text", ['a"b', "a'b", "a\\b", "a\\u0062", "a]b", "$", "", "ä", "a\nb", "%", "ab*"])
def test_a_label_may_have_any_key_and_value(store: Store, text: str) -> None:
    write(store, record(1, labels={text: text}), record(2, labels={"ab": "ab", "x": "ab"}))
    assert page(store, label=(text, None)) == [1]
    assert page(store, label=(text, text)) == [1]
    assert page(store, label=("ab", text)) == page(store, label=(text, "ab")) == []


def test_a_label_with_a_zero_character_is_no_error(store: Store) -> None:
    write(store, record(1, labels={"a\0b": "c\0d"}))
    assert page(store, label=("a", None)) in ([], [1])
    page(store, label=("a\0b", "c\0d"))


def test_among_narrows_to_handles(listed: Store) -> None:
    assert page(listed, among=[4, 1, 99]) == [1, 4]
    assert page(listed, among=[]) == []
    assert page(listed, among=[1, 2], action="allow") == [2]
    assert page(listed, among=list(range(2, 50_000))) == [2, 3, 4]


def test_the_address_is_not_the_stores_to_judge(listed: Store) -> None:
    assert page(listed, address=parse_prefix("10.0.0.1")) == [1, 2, 3, 4]


# --- expiry


def test_expired_rules_come_oldest_first_up_to_a_limit(store: Store) -> None:
    write(store, record(1, ttl=30), record(2), record(3, ttl=10), record(4, ttl=20))
    assert store.next_expiry() == NOW + 10
    assert store.expired(NOW + 9.9, 10) == []
    assert handles(store.expired(NOW + 20, 10)) == [3, 4]
    assert handles(store.expired(NOW + 100, 2)) == [3, 4]
    write(store, deleted=(3, 4, 1))
    assert store.next_expiry() is None


# --- counters


def test_hits_add_up_and_keep_the_latest_moment(store: Store) -> None:
    with store.transaction():
        store.add_hits([(1, Hits(1, 100, 50.0)), (2, Hits(5, 5, 5.0))])
        store.add_hits([(1, Hits(2, 200, 40.0)), (1, Hits(3, 300, 60.0))])
    assert store.hits([1, 2, 3]) == {1: Hits(6, 600, 60.0), 2: Hits(5, 5, 5.0)}
    assert store.hits([]) == {}


def test_no_packets_are_no_hits(store: Store) -> None:
    with store.transaction():
        store.add_hits([(1, Hits(0, 0, 0.0))])
    assert store.hits([1]) == {}


def test_the_hits_of_a_rule_go_with_it(store: Store) -> None:
    write(store, record(1), record(2))
    with store.transaction():
        store.add_hits([(1, Hits(1, 1, 1.0)), (2, Hits(1, 1, 1.0))])
    write(store, deleted=(1,))
    write(store, record(2, priority=1))
    assert store.hits([1, 2]) == {2: Hits(1, 1, 1.0)}


def test_hits_of_many_rules_are_read_at_once(store: Store) -> None:
    with store.transaction():
        store.add_hits((n, Hits(n, n, 1.0)) for n in range(1, 1300))
    assert store.hits(range(1, 1300)) == {n: Hits(n, n, 1.0) for n in range(1, 1300)}


def test_interface_totals_add_up_by_all_that_names_them(store: Store) -> None:
    with store.transaction():
        store.add_interface_hits(
            [InterfaceTotal("eth0", 0, 1, 1, 2, 200), InterfaceTotal("eth0", 0, 1, 3, 1, 1)]
        )
        store.add_interface_hits(
            [InterfaceTotal("eth0", 0, 1, 1, 3, 300), InterfaceTotal("eth1", 0, 1, 1, 9, 9)]
        )
    assert sorted(store.interface_totals()) == [
        InterfaceTotal("eth0", 0, 1, 1, 5, 500),
        InterfaceTotal("eth0", 0, 1, 3, 1, 1),
        InterfaceTotal("eth1", 0, 1, 1, 9, 9),
    ]


# --- interfaces


def test_the_last_request_for_an_interface_counts_until_it_is_forgotten(store: Store) -> None:
    first, last = (
        InterfaceRequest("eth0", True, "auto", True, True),
        InterfaceRequest("eth0", False, "auto", True, True),
    )
    other = InterfaceRequest("eth1", True, "native", False, True)
    for request in (first, last, other):
        with store.transaction():
            store.write_interface(request, request.name)
    assert store.interfaces() == {"eth0": last, "eth1": other}
    with store.transaction():
        store.write_interface(None, "eth0")
    assert store.interfaces() == {"eth1": other}
