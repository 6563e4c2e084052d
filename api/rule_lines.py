"""Rules as lines of JSON (NDJSON), read as they arrive.

Owns what a line is and which one a fault is in. It holds the rules and never the text: at most one line that is not
whole yet. What the fields mean is api.rule_body's and firewall.rule's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import orjson

from api import rule_body
from firewall.errors import FirewallError, InvalidInput, Problem
from firewall.rule import Rule, invalid_rule

PROBLEMS_TOLD = 100
MOST_LINE_BYTES = 1 << 20
_PLACE = re.compile(r"^/add/(\d+)")


class RuleLines:
    """`rules`, and of each the number of its line, counted from 1."""

    def __init__(self, new_id: Callable[[], str], now: float) -> None:
        self.rules: list[Rule] = []
        self._numbers: list[int] = []
        self._problems: list[Problem] = []
        self._bad_lines = 0
        self._read = 0
        self._begun = b""
        self._new_id, self._now = new_id, now

    def feed(self, part: bytes) -> None:
        """Bytes of the text, wherever they begin and end."""
        *whole, self._begun = (self._begun + part).split(b"\n")
        for line in whole:
            self._line(line)
        if len(self._begun) > MOST_LINE_BYTES:
            number = self._read + 1
            problem = Problem(f"/line/{number}", f"is longer than {MOST_LINE_BYTES:,} bytes")
            hint = "write one rule a line"
            raise InvalidInput(f"line {number}: {problem.detail}", hint, (problem,), "invalid_list")

    def end(self) -> list[Rule]:
        """Raises one InvalidInput for the faults of all lines."""
        self._line(self._begun)
        self._begun = b""
        if self._problems:
            error = invalid_rule(self._problems[:PROBLEMS_TOLD])
            first = self._problems[0]
            more = f" (and {self._bad_lines - 1} more)" if self._bad_lines > 1 else ""
            _, _, number, *field = first.pointer.split("/", 3)
            where = f"line {number}" + (f", /{field[0]}" if field else "")
            error.detail, error.code = f"{where}: {first.detail}{more}", "invalid_list"
            raise error
        return self.rules

    def _line(self, line: bytes) -> None:
        self._read += 1
        if self._read == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            return
        faults = self._rule(line)
        self._bad_lines += bool(faults)
        if len(self._problems) < PROBLEMS_TOLD:
            self._problems += [replace(each, pointer=f"/line/{self._read}{each.pointer}") for each in faults]

    def _rule(self, line: bytes) -> tuple[Problem, ...]:
        """The faults of a line; where there are none, its rule is there."""
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return (Problem("", f"is not JSON: {error.msg} at column {error.colno}"),)
        if not isinstance(fields, dict):
            return (Problem("", "must be an object, the rule"),)
        try:
            rule = rule_body.read_new(fields, self._new_id, self._now)
        except InvalidInput as error:
            return error.problems
        if not self._problems:  # else nothing of it is wanted any more
            self.rules.append(rule)
            self._numbers.append(self._read)
        return ()

    def placed(self, error: FirewallError) -> FirewallError:
        """A refusal of the rules as a batch, with the lines in the place of its pointers."""
        error.problems = tuple(
            replace(each, pointer=_PLACE.sub(self._line_of, each.pointer)) for each in error.problems
        )
        return error

    def _line_of(self, found: re.Match[str]) -> str:
        return f"/line/{self._numbers[int(found[1])]}"
