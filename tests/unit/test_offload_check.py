"""What hardware is asked to judge: rules that are addresses alone, and none that only observes."""

from __future__ import annotations

import pytest

from firewall.datapath import Link
from firewall.errors import Conflict
from firewall.kernel.offload import OffloadDevice
from firewall.policy import Policy, PolicyRule, compile_policy
from firewall.rule import rule_from_fields


def policy_of(**fields: object) -> Policy:
    return compile_policy([PolicyRule(rule_from_fields(fields, "r", 0.0), 1, 0)], {})


def test_rules_that_observe_are_no_matter_of_the_hardware() -> None:
    device = OffloadDevice.__new__(OffloadDevice)  # without a card
    device._link, device._entries, device.capacity = Link(2, "eth0", True, True), {}, 2
    device.check((), policy_of(protocols="tcp", mode="observe"))
    device.check((), policy_of(sources="10.0.0.1", mode="observe"))
    with pytest.raises(Conflict, match="hardware"):
        device.check((), policy_of(protocols="tcp"))
