"""`python -m benchmarks`: asks the questions one after the other and reports.

Owns the command line. Exit status: 0 where everything could be measured, met or not; 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks import bulk, packet_cost, peers, plot, report, set_bulk, throughput, updates
from benchmarks.measure import Answers, Plan
from benchmarks.world import entered

QUESTIONS = {
    "packet_cost": packet_cost.run,
    "throughput": throughput.run,
    "bulk": bulk.run,
    "sets": set_bulk.run,
    "updates": updates.run,
}


def main() -> int:
    arguments = _arguments()
    if os.geteuid():
        sys.exit("benchmarks: run it as root (it makes namespaces of its own): sudo make bench")
    if missing := peers.missing_packages():
        sys.exit(f"benchmarks: these packages are missing: {' '.join(missing)}")
    # The end that a terminated run would not reach: the directory on the disk is removed there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    plan, answers = Plan(arguments.quick), Answers()
    where = report.environment(arguments.quick)
    with entered() as world:
        for name in arguments.only or QUESTIONS:
            started = time.monotonic()
            print(f"{name} ...", file=sys.stderr, flush=True)
            answers.extend(QUESTIONS[name](world, plan))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    report.show(answers, where, console)
    if arguments.json:
        arguments.json.write_text(report.as_json(answers, where))
    if arguments.markdown:
        arguments.markdown.write_text(report.as_markdown(answers, where))
    if arguments.plot:
        plot.draw(answers, arguments.plot)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure ebpf-fw and its peers."
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes, under three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG")
    parser.add_argument(
        "--only", action="append", choices=list(QUESTIONS), help="ask this question (may be repeated)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
