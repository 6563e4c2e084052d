"""Makes the kernel refuse what the datapath asks of it: at one step of a change, or from one step on.

A step is one call that writes: a batch into a map, one element, a policy generation, a wait. Where a batch is
refused, half of it has happened.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

import firewall.kernel.datapath as datapath
from firewall.errors import kernel_refused
from firewall.kernel.bpf import Map
from firewall.kernel.grace import GracePeriod


class Sabotage:
    """`at`: the step that fails, counted from 0; `goes_on`: so do all after it, until repair()."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._at: int | None = None
        self._goes_on = False
        self.steps: list[str] = []
        update_batch, delete_batch, update = Map.update_batch, Map.delete_batch, Map.update
        write_policy = datapath.write_policy

        def half_updated(table: Map, keys: Any, values: Any) -> None:
            update_batch(table, keys[: len(keys) // 2], values[: len(keys) // 2])

        def half_deleted(table: Map, keys: Any) -> None:
            delete_batch(table, keys[: len(keys) // 2])

        patch.setattr(Map, "update_batch", self._step("update_batch", update_batch, half_updated))
        patch.setattr(Map, "delete_batch", self._step("delete_batch", delete_batch, half_deleted))
        patch.setattr(Map, "update", self._step("update", update))
        patch.setattr(Map, "point_at", self._step("point_at", Map.point_at))
        patch.setattr(GracePeriod, "wait", self._step("wait", GracePeriod.wait))
        patch.setattr(GracePeriod, "finish", self._step("finish", GracePeriod.finish))
        # Its own writes are steps as well; this one is after all of them.
        patch.setattr(datapath, "write_policy", self._step("write_policy", write_policy, write_policy))

    def _step(
        self, name: str, call: Callable[..., Any], half: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            number = len(self.steps)
            self.steps.append(name)
            if self._at is not None and (number == self._at or (self._goes_on and number > self._at)):
                if half is not None:
                    half(*arguments)
                raise kernel_refused(f"{name}, step {number}", errno.ENOMEM)
            return call(*arguments)

        return step

    def begin(self, at: int, goes_on: bool = False) -> None:
        self._at, self._goes_on = at, goes_on
        self.steps.clear()

    def repair(self) -> None:
        self._at = None
