"""`ebpf-fw serve` with the kernel in memory: what tests/api/test_server.py runs as a process.

python -m tests.api.service_process CONFIG [TROUBLE]: start-fails, start-is-rejected, start-is-slow, change-is-slow,
exports-are-slow, or drops
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import api.__main__
import api.export
import api.ruleset
from api.wiring import build
from firewall.enforcer import Enforcer
from firewall.errors import KernelRefused, ProgramRejected
from firewall.policy import Policy
from firewall.settings import Settings
from tests.memory_kernel import MemoryKernel, MemoryReports
from tests.records import record

SLOW_S = 1.5


class Dropping(MemoryReports):
    """Something is dropped all the time, and reported while somebody listens."""

    def read(self, most: int) -> list[bytes]:
        time.sleep(0.01)
        return [record(content=bytes(1400), streams=3) for _ in range(100)] if self.listening else []

    def wait(self, timeout_s: float) -> None:
        pass


class ServiceKernel(MemoryKernel):
    def __init__(self, settings: Settings, trouble: str) -> None:
        super().__init__(settings.bpf.max_addresses, settings.bpf.max_rules)
        self._trouble = trouble
        if trouble == "drops":
            self.reports = Dropping()

    def start(self, owner: int) -> dict[int, int]:
        if self._trouble == "start-fails":
            raise KernelRefused("creating map address4 failed with EPERM", "run it as root", errno=1)
        if self._trouble == "start-is-rejected":
            raise ProgramRejected("the verifier rejected it", log="0: (79) r1\nR1 invalid mem access")
        if self._trouble == "start-is-slow":
            time.sleep(SLOW_S)
        return super().start(owner)

    def reserve(self, entries: Mapping[int, int], policy: Policy) -> None:
        if self._trouble == "change-is-slow" and self.policy is not None:
            time.sleep(SLOW_S)


def main() -> None:
    config, trouble = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""

    if trouble == "exports-are-slow":  # no second one passes before their time is over
        vars(api.ruleset)["bounded"] = lambda parts: api.export.bounded(parts, 0)

    def build_in_memory(settings: Settings) -> Enforcer:
        return build(settings, lambda _: ServiceKernel(settings, trouble))

    vars(api.__main__)["build"] = build_in_memory
    api.__main__.serve(config)


if __name__ == "__main__":
    main()
