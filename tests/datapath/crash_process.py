"""Makes changes and dies by SIGKILL at some line of code of one, over and over; each start checks what is left.

    python -m tests.datapath.crash_process DIRECTORY CHANGES SEED

DIRECTORY/bpf is on a bpf file system. A child does the changes and says before each what the rules will be, and after
it that it was acknowledged. The next child starts on what was left: store and maps must hold either exactly what
was acknowledged, or that and the one change which was under way. Some lives begin without pins, as after a reboot,
and some with programs of other sizes; in some the start itself is killed. Tables begin small, so that they grow often.
Prints how many changes and kills there were, and in which modules it was killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from firewall import addresses, set_expiry
from firewall.address import parse_prefix
from firewall.address_list import parse_list
from firewall.kernel import address_table, program_set
from firewall.set_entries import EntryColumns, SetEntry, entry_columns
from tests.datapath.contents import assert_exact, stored_sets
from tests.datapath.loaded import Loaded, to_rule

FIREWALL = str(Path(__file__).parents[2] / "firewall")
CHANGES_A_LIFE = 8
MOST_LINES = 4000
FIRST_TABLE = 64  # entries
FRONT, BUCKETS = 16, 4  # entries that the front has at most, buckets of the first rows after it
State = list[str]
Content = dict[str, list[str]]  # of sets, by name
SETS = ("a", "b")


def state_of(rules: list[dict[str, Any]], content: Content) -> State:
    """Comparable, whatever ids the service gave."""
    told = sorted(json.dumps({**each, "id": None}, sort_keys=True, default=str) for each in rules)
    return told + [f"{name}: {sorted(entries)}" for name, entries in sorted(content.items()) if entries]


def content_of(loaded: Loaded) -> Content:
    return {name: [str(each) for each in entries] for name, entries in stored_sets(loaded).items()}


def present(loaded: Loaded) -> list[dict[str, Any]]:
    return [rule.fields() for rule in loaded.enforcer.export()[0]]


def random_rule(chance: random.Random, rule_id: str) -> dict[str, Any]:
    address = f"10.0.{chance.randrange(4)}.{chance.randrange(8)}"
    kinds: list[dict[str, Any]] = [
        {"sources": [address]},
        {"sources": [address, "2001:db8::/32"], "direction": "both"},
        {"destinations": ["10.0.0.0/8"], "action": "allow", "direction": "egress"},
        {"protocols": ["tcp"], "destination_ports": [chance.randrange(1, 99)]},
        {"sources": [f"{address}/32"], "protocols": ["udp"]},
        {"interfaces": ["pretended-interface-0"], "protocols": ["icmp"]},
        {"sources": ["@a"], "action": chance.choice(("drop", "allow"))},
        {"sources": ["@a", "@b", address], "direction": "both"},
        {"sources": ["@b"], "protocols": ["tcp"]},
    ]
    return {"id": rule_id, "priority": chance.randrange(3), **chance.choice(kinds)}


def random_change(
    chance: random.Random, loaded: Loaded, number: int
) -> tuple[list[dict[str, Any]], Callable[[], object]]:
    """The rules after it, and the change itself."""
    rules = present(loaded)
    ids = [each["id"] for each in rules]
    new = [random_rule(chance, f"c{number}-{n}") for n in range(chance.randrange(1, 5))]
    made = [to_rule(each).fields() for each in new]
    gone = chance.sample(ids, min(len(ids), chance.randrange(1, 4)))
    kind = chance.choice(
        ["add", "delete", "edit", "batch", "batch", "import", "replace", "grow", "group", "group"]
    )
    if len(rules) > 300:
        kind = "replace"
    if kind == "delete" and ids:
        return [each for each in rules if each["id"] != gone[0]], lambda: loaded.delete(gone[0])
    if kind == "edit" and ids:
        edited = {**new[0], "id": gone[0]}
        kept = [each for each in rules if each["id"] != gone[0]]
        return [*kept, to_rule(edited).fields()], lambda: loaded.put(edited)
    if kind == "batch":
        kept = [each for each in rules if each["id"] not in gone]
        return [*kept, *made], lambda: loaded.batch(new, gone)
    if kind == "replace":
        return made, lambda: loaded.rules(*new)
    if kind == "group":
        return group_change(chance, loaded, rules, number)
    if kind in ("import", "grow"):
        count = 9 if kind == "import" else chance.randrange(50, 150)
        lines = [f"192.0.{number % 250}.{n}" for n in range(count)]
        lines += [f"2001:db8:{number:x}::{n:x}" for n in range(1, count)]
        columns = parse_list("\n".join(lines))
        listed = [to_rule({"id": "x", "sources": [line], "priority": 7}).fields() for line in lines]
        before = {json.dumps({**each, "id": None}, default=str) for each in rules}
        fresh = [each for each in listed if json.dumps({**each, "id": None}, default=str) not in before]
        return [*rules, *fresh], lambda: loaded.enforcer.import_list(columns, "drop", 7, "ingress")
    return [*rules, made[0]], lambda: loaded.enforcer.add(to_rule(new[0]))


def group_change(
    chance: random.Random, loaded: Loaded, rules: list[dict[str, Any]], number: int
) -> tuple[list[dict[str, Any]], Callable[[], object]]:
    """Rules that wait at the same time, and share one commit."""
    added = [
        to_rule({"id": f"g{number}-{n}", "sources": [f"10.{chance.randrange(99)}.{n}.1"]}) for n in range(5)
    ]
    lone = [each["id"] for each in rules if not each["protocols"] and not each["interfaces"]]
    gone = chance.sample(lone, min(len(lone), 2))
    calls: list[Callable[[], object]] = [partial(loaded.enforcer.add, rule) for rule in added]
    calls[2:2] = [partial(loaded.enforcer.delete, rule_id) for rule_id in gone]

    def together() -> None:
        for outcome in loaded.enforcer.together(calls):
            if outcome.error is not None:
                raise outcome.error

    kept = [each for each in rules if each["id"] not in gone]
    return [*kept, *(rule.fields() for rule in added)], together


def set_change(chance: random.Random, loaded: Loaded) -> tuple[Content, Callable[[], object]]:
    """What is in the sets after it, and the change itself. What expires comes and goes within one."""
    content = content_of(loaded)
    name, count = chance.choice(SETS), chance.choice((1, 3, 40, 150))
    pool = [f"10.0.{n % 4}.{n}" for n in range(200)] + [f"2001:db8::{n:x}" for n in range(1, 200)]
    some, before = chance.sample(pool, count), content[name]
    kind = chance.choice(("add", "remove", "replace", "expire"))
    enforcer = loaded.enforcer
    if kind == "add":
        return {**content, name: sorted({*before, *some})}, lambda: enforcer.add_entries(name, columns(some))
    if kind == "remove":
        left = sorted(set(before) - set(some))
        return {**content, name: left}, lambda: enforcer.delete_entries(name, columns(some))
    if kind == "replace":
        return {**content, name: sorted(some)}, lambda: enforcer.replace_entries(name, columns(some))
    come = [each for each in some if each not in before]

    def expire() -> None:
        enforcer.add_entries(name, columns(come, time.time() - 1))
        while enforcer._set_store.next_expiry() is not None:
            enforcer._expire_entries()

    return content, expire


def columns(prefixes: list[str], until: float | None = None) -> list[EntryColumns]:
    return entry_columns(SetEntry(parse_prefix(each), until) for each in prefixes)


class Bomb:
    """Kills this process at the n-th line that it executes of the firewall; says where."""

    def __init__(self, lines: int, say: TextIO) -> None:
        self._left = lines
        self._say = say

    def arm(self) -> None:
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(FIREWALL) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self._left -= 1
            if self._left <= 0:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                print(json.dumps({"dies": where}), file=self._say, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line


def live(directory: Path, seed: int, allowed: list[State], say: TextIO) -> None:
    """One life: check what is left, change, die."""
    chance = random.Random(seed)
    program_set.INITIAL_ADDRESSES = FIRST_TABLE
    address_table.FRONT_ENTRIES, address_table.FEWEST_BUCKETS = FRONT, BUCKETS
    addresses._FEW = chance.choice((0, 256))
    set_expiry._EXPIRE_AT_ONCE = 16
    root = directory / "bpf" / "root"
    if chance.random() < 0.1:
        shutil.rmtree(root, ignore_errors=True)
    sizes = {"max_rules": 128 if chance.random() < 0.03 else 256}
    kills_the_start = chance.random() < 0.1
    if kills_the_start:
        Bomb(int(MOST_LINES ** chance.random()), say).arm()
    loaded = Loaded(directory, bpf=sizes)
    found = state_of(present(loaded), content_of(loaded))
    if found not in allowed:
        differences = [sorted(set(found) ^ set(each)) for each in allowed]
        raise AssertionError(f"lost or too much, beside what was acknowledged or under way: {differences}")
    assert_exact(loaded)
    print(json.dumps({"state": found}), file=say, flush=True)
    for name in SETS:
        loaded.enforcer.put_set(name)
    armed_at = chance.randrange(CHANGES_A_LIFE)
    for number in range(CHANGES_A_LIFE * 3):
        rules, content = present(loaded), content_of(loaded)
        if chance.random() < 0.3:
            content, change = set_change(chance, loaded)
        else:
            rules, change = random_change(chance, loaded, seed * 100 + number)
        print(json.dumps({"will": state_of(rules, content)}), file=say, flush=True)
        if number == armed_at:
            Bomb(int(MOST_LINES ** chance.random()), say).arm()
        change()
        print(json.dumps({"acknowledged": True}), file=say, flush=True)


def one_life(directory: Path, seed: int, allowed: list[State]) -> tuple[list[State], int, str | None]:
    """What may be left, how many changes were acknowledged, where it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "w") as say:
                live(directory, seed, allowed, say)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as heard:
        told = [json.loads(line) for line in heard if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"seed {seed}: the child failed")
    acknowledged, place = 0, None
    for each in told:
        if "state" in each:
            allowed = [each["state"]]
        elif "will" in each:
            allowed = [allowed[0], each["will"]]
        elif "dies" in each:
            place = each["dies"]
        else:
            allowed, acknowledged = allowed[1:], acknowledged + 1
    assert os.WIFSIGNALED(status) == (place is not None)
    return allowed, acknowledged, place


def main(directory: Path, changes: int, seed: int) -> None:
    allowed: list[State] = [[]]
    made = in_flight = 0
    places: Counter[str] = Counter()
    while made < changes:
        allowed, acknowledged, place = one_life(directory, seed, allowed)
        made, seed = made + acknowledged, seed + 1
        in_flight += len(allowed) > 1
        if place is not None:
            places[place] += 1
    one_life(directory, seed, allowed)
    modules = Counter(place.split(":")[0] for place in places.elements())
    told = {"changes": made, "kills": places.total(), "in_flight": in_flight, "lines": len(places)}
    print(json.dumps({**told, "modules": dict(modules.most_common())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
