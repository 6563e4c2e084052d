"""What the compiler makes of a program text: instructions that name their maps, and how those maps are to be made.

Owns its form as text, which the compiling process answers with and the cache keeps. Loads nothing.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass

# An instruction of 16 bytes that loads 64 bits (include/uapi/linux/bpf.h), and what makes it load a map.
_LOAD_64 = 0x18
_PSEUDO_MAP_FD = 1
_INSTRUCTION = struct.Struct("=BBhi")


@dataclass(frozen=True)
class MapShape:
    """As in union bpf_attr. `key_type`, `value_type`: of the type information, 0 for none."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type: int = 0
    value_type: int = 0


@dataclass(frozen=True)
class Code:
    """Instructions, and by their offset in bytes the maps that they load; the descriptors there are 0."""

    instructions: bytes
    maps: Mapping[int, str]

    @classmethod
    def taken(cls, instructions: bytes, names: Mapping[int, str]) -> Code:
        """`names`: of maps by descriptor, as the instructions have them."""
        found = bytearray(instructions)
        maps = {}
        at = 0
        while at < len(found):
            operation, registers, offset, value = _INSTRUCTION.unpack_from(found, at)
            if operation == _LOAD_64:
                if registers >> 4 == _PSEUDO_MAP_FD:
                    maps[at] = names[value]
                    _INSTRUCTION.pack_into(found, at, operation, registers, offset, 0)
                at += _INSTRUCTION.size
            at += _INSTRUCTION.size
        return cls(bytes(found), maps)

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """`descriptors`: of the maps by name."""
        linked = bytearray(self.instructions)
        for at, name in self.maps.items():
            operation, registers, offset, _ = _INSTRUCTION.unpack_from(linked, at)
            _INSTRUCTION.pack_into(linked, at, operation, registers, offset, descriptors[name])
        return bytes(linked)


@dataclass(frozen=True)
class Compiled:
    """`compiler`: its version; `types`: type information (BTF), which may be empty; maps and programs by name."""

    compiler: str
    types: bytes
    maps: Mapping[str, MapShape]
    programs: Mapping[str, Code]

    def to_text(self) -> str:
        return json.dumps(
            {
                "compiler": self.compiler,
                "types": _encoded(self.types),
                "maps": {name: asdict(shape) for name, shape in self.maps.items()},
                "programs": {
                    name: {"instructions": _encoded(code.instructions), "maps": dict(code.maps)}
                    for name, code in self.programs.items()
                },
            }
        )

    @classmethod
    def from_text(cls, text: str) -> Compiled:
        """What to_text() wrote."""
        fields = json.loads(text)
        programs = {
            name: Code(
                base64.b64decode(each["instructions"]), {int(at): name for at, name in each["maps"].items()}
            )
            for name, each in fields["programs"].items()
        }
        maps = {name: MapShape(**each) for name, each in fields["maps"].items()}
        return cls(fields["compiler"], base64.b64decode(fields["types"]), maps, programs)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
