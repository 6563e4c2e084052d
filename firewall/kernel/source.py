"""The program text: our headers and skins pasted into one, with the sizes that they are compiled for.

Owns the order of the parts, the -D flags, the header tree that replaces kernel headers, and the fingerprint
that says whether a loaded program is this one.
"""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from firewall.layout import BPF_DIRECTORY, C
from firewall.policy import policy_words

UAPI = ("bpf", "if_ether", "ip", "ipv6", "tcp", "udp", "pkt_cls")
PARTS = (
    "layout.h", "parse.h", "maps.h", "keys.h", "decision.h", "essential.h", "verdict.h", "address.h", "policy.h",
    "decide.h", "account.h", "report.h", "set_entries.h", "observe.h", "xdp_filter.c", "tc_filter.c", "observer.c",
    "set_counter.c", "reporter.c",
)  # fmt: skip

TEST_PARTS = (*(part for part in PARTS if part.endswith(".h")), "test_filter.c")
TEST_PROGRAMS = ("fw_test_xdp_ingress", "fw_test_xdp_egress")  # by hook

OFFLOAD_PARTS = (
    "layout.h", "parse.h", "keys.h", "decision.h", "essential.h", "verdict.h", "offload_filter.c",
)  # fmt: skip
OFFLOAD_PROGRAM = "fw_xdp_offload"

# Entry points: (hook, has an Ethernet header) to function and program type name.
XDP_PROGRAMS = {True: "fw_xdp_ethernet", False: "fw_xdp_ip"}
TC_PROGRAMS = {True: "fw_tc_ethernet", False: "fw_tc_ip"}
# By the map that leads to them: what the others end in when somebody listens.
REPORTERS = {"report_xdp": "fw_report_xdp", "report_tc": "fw_report_tc"}
# The same for what they end in where rules observe.
OBSERVERS = {"observe_xdp": "fw_xdp_observe", "observe_tc": "fw_tc_observe"}
# The same for those that count entries of sets.
ENTRY_COUNTERS = {"entries_xdp": "fw_xdp_entries", "entries_tc": "fw_tc_entries"}
BEYOND = {**REPORTERS, **OBSERVERS, **ENTRY_COUNTERS}
PROGRAMS = (*XDP_PROGRAMS.values(), *TC_PROGRAMS.values(), *BEYOND.values())
OUR_PROGRAMS = frozenset((*PROGRAMS, OFFLOAD_PROGRAM))

BPF_F_NO_PREALLOC = 1
POLICY_INTERFACES_MAX = 4096
REPORT_BYTES = 1 << 22  # of the ring: a power of two, and whole pages of any size


@dataclass(frozen=True)
class Capacities:
    """What the maps hold at most that are made with the programs. `rules`: policy rules. A generation has the others:
    `intervals` of addresses and `prefixes` of sets by family; `blocks` of the index of the former; `named`: sets, as
    often as rules name them. But `entries`: of sets that count, in all."""

    rules: int
    vectors: int = 1024
    lines: int = 8192
    intervals4: int = 16384
    intervals6: int = 16384
    blocks: int = 1024
    named: int = 1024
    prefixes4: int = 8192
    prefixes6: int = 8192
    entries: int = 16384

    @property
    def words(self) -> int:
        return policy_words(self.rules)

    def flags(self) -> list[str]:
        sizes = {
            "MAX_RULES": self.rules,
            "MAX_POLICY_INTERFACES": POLICY_INTERFACES_MAX * C["GENERATION_COUNT"] * C["HOOK_COUNT"],
            "VECTOR_WORDS": self.words,
            "VECTOR_COUNT": self.vectors,
            "LINE_COUNT": self.lines,
            "INTERVAL_COUNT4": self.intervals4,
            "INTERVAL_COUNT6": self.intervals6,
            "BLOCK_COUNT": self.blocks,
            "NAMED_COUNT": self.named,
            "SET_COUNT4": self.prefixes4,
            "SET_COUNT6": self.prefixes6,
            "ENTRY_COUNT": self.entries,
            "REPORT_BYTES": REPORT_BYTES,
        }
        return [f"-D{name}={value}" for name, value in sizes.items()]


@dataclass(frozen=True)
class Order:
    """What is to be compiled: a text with its flags, and the entry points in it."""

    text: str
    flags: Sequence[str]
    programs: Sequence[str]


def filter_order(capacities: Capacities) -> Order:
    return Order(program_text(), capacities.flags(), PROGRAMS)


def question_order(capacities: Capacities) -> Order:
    """The programs that judge packets for questions."""
    return Order(program_text(TEST_PARTS), [*capacities.flags(), "-Wno-unused-function"], TEST_PROGRAMS)


def is_xdp(program: str) -> bool:
    """Else it is a classifier."""
    return program.startswith("fw_") and "_xdp" in program


def program_text(parts: Sequence[str] = PARTS) -> str:
    """One text, because bcc rewrites map access in the main text alone; #line keeps file and line in messages."""
    includes = [f"#include <uapi/linux/{name}.h>" for name in UAPI]
    pasted = [f'#line 1 "{part}"\n{(BPF_DIRECTORY / part).read_text(encoding="utf-8")}' for part in parts]
    return "\n".join([*includes, *pasted])


def _fingerprint(content: str) -> int:
    """64 bits, never 0: an empty control map holds that."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "little") | 1


def program_fingerprint(capacities: Capacities) -> int:
    """Of everything that decides what is loaded."""
    return _fingerprint(program_text() + repr(sorted(asdict(capacities).items())))


def layout_fingerprint() -> int:
    """Of what maps hold and how: maps of the same fingerprint can stay when the program changes."""
    return _fingerprint(
        "".join((BPF_DIRECTORY / part).read_text(encoding="utf-8") for part in ("layout.h", "maps.h"))
    )


def build_header_tree(directory: Path) -> Path:
    """What BCC_KERNEL_SOURCE names: our stubs, and links to the C library's copies of the UAPI headers.

    Raises FileNotFoundError where those are not installed.
    """
    include = directory / "include"
    shutil.copytree(BPF_DIRECTORY / "kernel-headers" / "include", include)
    system = Path("/usr/include")
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    architecture = next((path for path in (system / triplet / "asm", system / "asm") if path.is_dir()), None)
    if architecture is None or not (system / "linux" / "bpf.h").exists():
        raise FileNotFoundError("/usr/include/linux/bpf.h is missing: install the package linux-libc-dev")
    (include / "uapi").mkdir()
    for link, target in (
        ("uapi/linux", system / "linux"),
        ("uapi/asm", architecture),
        ("uapi/asm-generic", system / "asm-generic"),
        ("asm-generic", system / "asm-generic"),
    ):
        (include / link).symlink_to(target)
    return directory
