"""The filter in a device's hardware. netdevsim plays it: it takes programs and maps and never runs them."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Guest, check

LINE = "6.12"


@pytest.mark.parametrize(
    "name",
    [
        "attaches",
        "holds_address_rules",
        "refuses_a_rule_it_cannot_judge",
        "refuses_more_than_fits",
        "takes_as_many_as_fit",
        "detaching_leaves_nothing",
        "a_device_that_refuses_is_an_error",
        "works_again_afterwards",
    ],
)
def test_offload(offload_in: Guest, name: str) -> None:
    check(offload_in(LINE), name)
