"""Compiled programs into the kernel: makes the maps that are not there, loads the programs over them, pins both.

Owns how maps and programs are made. What is in them, and where the text comes from, others know.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from firewall.errors import KernelRefused, ProgramRejected
from firewall.kernel import bpf
from firewall.kernel.compiled import Compiled, MapShape
from firewall.kernel.source import is_xdp

KIND = "_kind"  # a map that is never used: it says what kind of map stands in the one of the name before
_OUTER = "_maps"
LOG_LINES = 25
_HINT = (
    "run `ebpf-fw check` to see what this host lacks; the log holds the compiler's or verifier's last lines"
)


def assemble(compiled: Compiled, pins: Path) -> None:
    """Maps that are pinned below pins/maps are used as they are; the others are made and pinned there, and the programs
    below pins/programs. Raises ProgramRejected with the verifier's last lines, or KernelRefused."""
    with ExitStack() as descriptors:
        linked = open_maps(compiled, pins / "maps", descriptors)
        for name, code in compiled.programs.items():
            kind = bpf.PROGRAM_XDP if is_xdp(name) else bpf.PROGRAM_CLASSIFIER
            try:
                program = bpf.load_program(kind, name, code.linked(linked))
            except KernelRefused as error:
                raise _rejected(name, error, bpf.verifier_log(kind, name, code.linked(linked))) from error
            descriptors.callback(os.close, program)
            bpf.pin(program, pins / "programs" / name)


def open_maps(compiled: Compiled, pins: Path, descriptors: ExitStack) -> dict[str, int]:
    """Their descriptors by name, which `descriptors` closes: of those that are pinned, and of others, pinned now."""
    bpf.allow_locked_memory()
    maps = _Maps(compiled, pins, descriptors)
    return {name: maps.opened(name) for name in compiled.maps if not name.endswith(KIND)}


class _Maps:
    def __init__(self, compiled: Compiled, pins: Path, descriptors: ExitStack) -> None:
        self._shapes = compiled.maps
        self._pins = pins
        self._descriptors = descriptors
        self._types = self._kept(bpf.load_types(compiled.types)) if compiled.types else 0

    def opened(self, name: str) -> int:
        try:
            return self._kept(bpf.get(self._pins / name))
        except FileNotFoundError:
            made = self._made(name)
            bpf.pin(made, self._pins / name)
            return made

    def _made(self, name: str) -> int:
        shape: MapShape = self._shapes[name]
        inner_name = name.removesuffix(_OUTER) + KIND
        inner = self._made(inner_name) if name.endswith(_OUTER) else 0
        types = (self._types, shape.key_type, shape.value_type) if shape.value_type else (0, 0, 0)
        return self._kept(
            bpf.create_map(
                name, shape.type, shape.key_size, shape.value_size, shape.max_entries, shape.flags, inner, types,
            )
        )  # fmt: skip

    def _kept(self, fd: int) -> int:
        self._descriptors.callback(os.close, fd)
        return fd


def _rejected(name: str, error: KernelRefused, log: str) -> ProgramRejected:
    lines = log.strip().splitlines()
    said = next((line for line in reversed(lines) if not line.startswith(_STATISTICS)), error.detail)
    detail = f"the filter programs could not be loaded: {name}: {said}"
    return ProgramRejected(detail, error.hint or _HINT, errno=error.errno, log="\n".join(lines[-LOG_LINES:]))


# What the verifier says at its end, whatever it found.
_STATISTICS = ("processed ", "verification time", "stack depth", "insns processed")
