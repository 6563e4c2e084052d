"""The layout of keys and values, read from bpf/layout.h, the one place that defines it.

Owns turning that header's enums, #defines and structs into numbers and numpy dtypes. A test compares them
with what the compiler laid out. Knows no map and no rule.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

BPF_DIRECTORY = Path(__file__).resolve().parent.parent / "bpf"

_SCALARS = {"__u8": "u1", "__u16": "<u2", "__u32": "<u4", "__u64": "<u8"}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFINE = re.compile(r"^#define (\w+) (0x[0-9a-fA-F]+|\d+)(?:ULL)?$", re.MULTILINE)
_ENUM = re.compile(r"^enum (\w+) \{(.*?)^\};", re.DOTALL | re.MULTILINE)
_ENUMERATOR = re.compile(r"(\w+) = (\d+),")
_STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^\s*(struct \w+|\w+) (\w+)(?:\[(\w+)\])?;$", re.MULTILINE)


class Layout:
    """`constants`: every number by name; `enums`: enumerators by enum; `structs`: a dtype by struct."""

    def __init__(self, header: str) -> None:
        text = "\n".join(line.rstrip() for line in _COMMENT.sub("", header).splitlines())
        self.constants = {name: int(value, 0) for name, value in _DEFINE.findall(text)}
        self.enums: dict[str, dict[str, int]] = {}
        for enum, body in _ENUM.findall(text):
            self.enums[enum] = {name: int(value) for name, value in _ENUMERATOR.findall(body)}
            self.constants |= self.enums[enum]
        self.structs: dict[str, np.dtype[np.void]] = {}
        for name, body in _STRUCT.findall(text):
            self.structs[name] = np.dtype([self._field(*field) for field in _FIELD.findall(body)])

    def _field(self, kind: str, name: str, count: str) -> tuple[str, object] | tuple[str, object, int]:
        dtype = self.structs[kind.removeprefix("struct ")] if kind.startswith("struct ") else _SCALARS[kind]
        if not count:
            return name, dtype
        return name, dtype, int(count) if count.isdecimal() else self.constants[count]

    def names(self, enum: str, prefix: str) -> tuple[str, ...]:
        """Names of an append-only enum in API form, by number: REASON_NOT_IP is `not_ip`. Counts are left out."""
        values = {number: name for name, number in self.enums[enum].items() if not name.endswith("_COUNT")}
        return tuple(values[number].removeprefix(prefix).lower() for number in range(len(values)))


LAYOUT = Layout((BPF_DIRECTORY / "layout.h").read_text(encoding="utf-8"))
C = LAYOUT.constants

HOOKS = LAYOUT.names("hook", "HOOK_")
VERDICTS = LAYOUT.names("verdict", "VERDICT_")
REASONS = LAYOUT.names("reason", "REASON_")
RANK_NONE = C["RANK_NONE"]
# policy.bit_numbers: a de Bruijn number's leading six bits are others after every shift.
BIT_NUMBERS = np.argsort([(C["DE_BRUIJN"] << bit & (1 << 64) - 1) >> 58 for bit in range(64)]).astype(
    np.uint8
)

PREFIX4 = LAYOUT.structs["prefix4"]
PREFIX6 = LAYOUT.structs["prefix6"]
ADDRESS_ENTRY = LAYOUT.structs["address_entry"]
FRONT_ROW = LAYOUT.structs["front_row"]
CONTROL = LAYOUT.structs["control"]
POLICY = LAYOUT.structs["policy"]
POLICY_RULE = LAYOUT.structs["policy_rule"]
SPAN = LAYOUT.structs["span"]
INTERVAL4 = LAYOUT.structs["interval4"]
INTERVAL6 = LAYOUT.structs["interval6"]
RULE_COUNTER = LAYOUT.structs["rule_counter"]
ENTRY_COUNTER = LAYOUT.structs["entry_counter"]
INTERFACE_KEY = LAYOUT.structs["interface_key"]
INTERFACE_SLOT = LAYOUT.structs["interface_slot"]
COUNTER = LAYOUT.structs["counter"]
