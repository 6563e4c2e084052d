"""Runs inside the machine: how often the verifier visits each instruction of a program, {index: visits}.

`python -m tests.vm.guest_profile RULES PROGRAM`. Where to look when a program is too complex for a kernel:
the log is some hundred megabytes, so give the machine 6 GB.
"""

from __future__ import annotations

import platform
import re
import sys
from collections import Counter
from typing import Any

from firewall.kernel.source import is_xdp
from tests.vm import guest_verifier
from tests.vm.guest import run_checks

_LOG_EVERYTHING = 2
_LOG_SIZE = 900 << 20
_VISIT = re.compile(rb"^(\d+): \(", re.MULTILINE)


def profile(rules: int, program: str) -> dict[str, Any]:
    kind = guest_verifier.XDP if is_xdp(program) else guest_verifier.SCHED_CLS
    with guest_verifier.linked(rules) as programs:
        status, log = guest_verifier.attempt(kind, program, programs[program], _LOG_EVERYTHING, _LOG_SIZE)
    visits = Counter(int(match[1]) for match in _VISIT.finditer(log))
    return {"kernel": platform.release(), "status": status, "log_bytes": len(log), "visits": dict(visits)}


if __name__ == "__main__":
    run_checks({"profile": lambda: profile(int(sys.argv[1]), sys.argv[2])})
