"""The programs load, judge and attach on every kernel that is supported, each as Debian builds it.

VM_RULES="64" leaves the larger tables out.
"""

from __future__ import annotations

import pytest

from tests.vm import kernel
from tests.vm.conftest import RULES, Guest, check

# In an order in which a kernel's tests stand together: each boots once, when its first test asks.
LINES = tuple(kernel.LINES)
# Of a million. What stays free is for the next field, and for the next kernel's idea of complexity.
INSTRUCTIONS_MAX = 750_000

pytestmark = pytest.mark.parametrize("line", LINES, scope="session")


@pytest.mark.parametrize("rules", RULES)
def test_the_verifier_accepts_every_program(programs_in: Guest, line: str, rules: int) -> None:
    check(programs_in(line), f"verify-{rules}")


@pytest.mark.parametrize("rules", RULES)
def test_the_verifier_has_instructions_to_spare(programs_in: Guest, line: str, rules: int) -> None:
    facts = check(programs_in(line), f"verify-{rules}")
    processed = {name: each["processed"] for name, each in facts.items() if name != "kernel"}
    assert max(processed.values()) <= INSTRUCTIONS_MAX, processed


@pytest.mark.parametrize("rules", RULES)
def test_bcc_loads_and_pins_every_program(programs_in: Guest, line: str, rules: int) -> None:
    check(programs_in(line), f"load-{rules}")


def test_the_kernel_is_the_one_that_was_asked_for(programs_in: Guest, line: str) -> None:
    assert check(programs_in(line), "describe")["kernel"].startswith(f"{line}.")


def test_frames_get_the_same_verdict_on_both_hooks(programs_in: Guest, line: str) -> None:
    check(programs_in(line), "judge")


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_pings_are_blocked_and_let_through_again(programs_in: Guest, line: str, mode: str) -> None:
    check(programs_in(line), f"veth-{mode}")


def test_an_address_table_is_replaced_by_a_larger_one(programs_in: Guest, line: str) -> None:
    check(programs_in(line), "grow-addresses")


def test_programs_are_replaced_by_ones_with_larger_tables_while_attached(
    programs_in: Guest, line: str
) -> None:
    check(programs_in(line), "grow-policy")
