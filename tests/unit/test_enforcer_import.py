"""Imported lists: rules like any other, only kept in bulk. A dictionary of rules judges random changes."""

from __future__ import annotations

import errno
import random

import pytest

from firewall.address_list import parse_list
from firewall.errors import KernelRefused, StoreFailed, TableFull
from firewall.rule import Rule
from tests.unit.failing_database import fail_on
from tests.unit.host import Host
from tests.unit.naive_addresses import naive_winners

POOL = [f"10.0.0.{n}" for n in range(8)] + [
    "10.0.0.0/24",
    "0.0.0.0/0",
    "2001:db8::1",
    "2001:db8::/32",
    "::/0",
]


def imported(
    host: Host, texts: list[str], action: str = "drop", priority: int = 1000, direction: str = "ingress"
) -> tuple[int, int]:
    """How many rules it made, and how many prefixes had one."""
    outcome = host.firewall.import_list(parse_list("\n".join(texts)), action, priority, direction)
    return outcome.added, outcome.unchanged


def by_id(host: Host) -> dict[str, Rule]:
    return {each.id: each for each in host.firewall.export()[0]}


def asked(rule: Rule) -> tuple[str, int, str, tuple[str, ...], tuple[str, ...]]:
    """What a rule asks, without its id."""
    sources, destinations = tuple(map(str, rule.sources)), tuple(map(str, rule.destinations))
    return rule.action, rule.priority, rule.direction, sources, destinations


def check(host: Host, model: dict[str, Rule]) -> None:
    assert by_id(host) == model
    assert host.firewall.count() == len(model)
    handled = [(rule, host.handle(rule_id)) for rule_id, rule in model.items()]
    assert len({handle for _, handle in handled}) == len(handled)
    assert host.kernel.entries == naive_winners(handled)


def random_change(host: Host, rng: random.Random, model: dict[str, Rule]) -> None:
    """Performs one and says it to the model."""
    step = rng.choice(("import", "import", "add", "delete", "edit", "restart", "kill"))
    if step == "import":
        texts, direction = rng.sample(POOL, rng.randint(1, 6)), rng.choice(("ingress", "egress"))
        action, priority = rng.choice(("drop", "allow")), rng.choice((10, 1000))
        side = 3 if direction == "ingress" else 4
        held = {
            text
            for rule in model.values()
            if asked(rule)[:2] == (action, priority) and rule.direction in (direction, "both")
            for text in asked(rule)[side]
        }
        before = set(by_id(host))
        fresh = set(texts) - held
        assert imported(host, texts + texts[:1], action, priority, direction) == (
            len(fresh),
            len(texts) + 1 - len(fresh),
        )
        new = {rule_id: rule for rule_id, rule in by_id(host).items() if rule_id not in before}
        sides = {(text,) for text in fresh}
        assert {asked(rule)[side] for rule in new.values()} == sides and len(new) == len(fresh)
        assert all(asked(rule)[:3] == (action, priority, direction) for rule in new.values())
        model |= new
    elif step == "add":
        rule_id = f"own-{rng.randrange(10**9)}"
        host.add(rule_id, sources=rng.sample(POOL, 2), direction="both")
        model[rule_id] = by_id(host)[rule_id]
    elif step == "delete" and model:
        going = rng.sample(sorted(model), min(len(model), 3))
        host.firewall.batch([], going)
        for rule_id in going:
            del model[rule_id]
    elif step == "edit" and model:
        rule_id = rng.choice(sorted(model))
        host.firewall.replace(host.rule(rule_id, sources=rng.choice(POOL), priority=rng.choice((5, 1000))))
        model[rule_id] = host.rule(rule_id, **by_id(host)[rule_id].fields())
    else:
        (host.stop if step == "restart" else host.kill)()
        host.start()


@pytest.mark.parametrize("seed", range(12))
def test_any_changes_of_imported_and_other_rules_are_as_a_dictionary_of_rules_has_them(
    host: Host, seed: int
) -> None:
    rng, model = random.Random(seed), dict[str, Rule]()
    for _ in range(25):
        random_change(host, rng, model)
        check(host, model)


def test_an_import_that_fails_leaves_everything_as_it_was(host: Host) -> None:
    host.add("a", sources="10.0.0.1", action="allow")
    imported(host, ["10.0.0.2"])
    before = host.state()
    host.kernel.refuse["apply"] = errno.ENOMEM
    with pytest.raises(KernelRefused):
        imported(host, POOL)
    host.kernel.refuse.clear()
    assert host.state() == before
    for statement in ("INSERT INTO blocks", "COMMIT"):
        with fail_on(host.firewall._store, statement), pytest.raises(StoreFailed):
            imported(host, POOL)
        assert host.state() == before
    assert imported(host, POOL) == (len(POOL) - 1, 1)


def test_an_import_that_fills_a_table_is_refused_before_anything_is_written(idle_host: Host) -> None:
    idle_host.start(bpf={"max_addresses": 3})
    imported(idle_host, ["10.0.0.1"])
    before = idle_host.state()
    with pytest.raises(TableFull, match="address4 holds at most 3 addresses and this change makes 4"):
        imported(idle_host, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"])
    assert idle_host.state() == before


def test_hits_of_imported_rules_are_told_and_kept(host: Host) -> None:
    imported(host, ["10.0.0.1", "10.0.0.2"])
    (rule_id,) = [each for each, rule in by_id(host).items() if str(rule.sources[0]) == "10.0.0.2"]
    host.hit("10.0.0.2", 5)
    host.stop()
    host.start()
    assert host.packets(rule_id) == 5
    host.add("better", sources="10.0.0.2", priority=1)
    assert host.packets(rule_id) == 5


def test_an_export_of_lists_is_of_one_moment(host: Host) -> None:
    imported(host, [f"10.0.0.{number}" for number in range(10)])
    host.add("single", destination_ports=80)
    imported(host, [f"10.0.1.{number}" for number in range(10)])
    before = host.ids()
    rules, _ = host.firewall.export()
    first = next(rules)
    host.firewall.delete(before[5])
    imported(host, ["10.0.2.1"])
    host.firewall.replace_all([], None)
    assert [first.id, *(each.id for each in rules)] == before and len(before) == 21
    assert not host.ids()
