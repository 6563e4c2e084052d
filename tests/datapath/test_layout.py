"""What Python read from bpf/layout.h is what the compiler lays out and what the kernel's maps hold.

The compiler itself judges: every size, offset and number that firewall/layout.py came to is an assertion
compiled together with the header.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firewall.kernel.keys import PREFIX
from firewall.kernel.maps import ARRAYS, NAMES, vector_words
from firewall.layout import (
    ADDRESS_ENTRY,
    BPF_DIRECTORY,
    COUNTER,
    INTERFACE_KEY,
    LAYOUT,
    REASONS,
    RULE_COUNTER,
)
from tests.datapath.loaded import Loaded

ROOT = BPF_DIRECTORY.parent
# In a process of its own: bcc exits the process on some errors, and its memory stays.
COMPILE = """
import json, os, sys, tempfile
from pathlib import Path
from firewall.kernel.source import build_header_tree
with tempfile.TemporaryDirectory() as directory:
    os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
    import bcc
    bcc.BPF(text=json.load(sys.stdin))
"""
# The only values that are no struct: numbers of vectors and descriptors of tables.
NUMBER = np.dtype("<u4")
VALUES = {
    "address4": (PREFIX[4], ADDRESS_ENTRY),
    "address6": (PREFIX[6], ADDRESS_ENTRY),
    "address4_maps": (NUMBER, NUMBER),
    "address6_maps": (NUMBER, NUMBER),
    "policy_iface": (INTERFACE_KEY, NUMBER),
    "policy_counters": (NUMBER, RULE_COUNTER),
    "counters": (NUMBER, COUNTER),
    "report_buckets": (NUMBER, LAYOUT.structs["report_bucket"]),
    "observe_xdp": (NUMBER, NUMBER),
    "observe_tc": (NUMBER, NUMBER),
    "entries_xdp": (NUMBER, NUMBER),
    "entries_tc": (NUMBER, NUMBER),
    "report_xdp": (NUMBER, NUMBER),
    "report_tc": (NUMBER, NUMBER),
    **{name: (NUMBER, dtype) for name, dtype in ARRAYS.items()},
}


def assertions() -> Iterator[tuple[str, int]]:
    """C expressions, and what Python takes them for."""
    for struct, dtype in LAYOUT.structs.items():
        yield f"sizeof(struct {struct})", dtype.itemsize
        assert dtype.fields is not None
        for field, (kind, offset, *_) in dtype.fields.items():
            yield f"__builtin_offsetof(struct {struct}, {field})", offset
            yield f"sizeof(((struct {struct} *)0)->{field})", kind.itemsize
    yield from LAYOUT.constants.items()


def compiled(checks: Iterator[tuple[str, int]] | list[tuple[str, int]]) -> str:
    """What the compiler says against them; empty where all hold."""
    lines = [
        f'_Static_assert(({expression}) == {value}u, "{expression} is not {value}");'
        for expression, value in checks
    ]
    text = "\n".join([(BPF_DIRECTORY / "layout.h").read_text(encoding="utf-8"), *lines])
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps(text),
        text=True,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert bool(done.returncode) == bool("static_assert" in done.stderr), done.stderr
    return "\n".join(re.findall(r"error: .*", done.stderr))


def test_the_compiler_lays_out_what_python_read() -> None:
    checks = list(assertions())
    assert len(checks) > 150
    assert compiled(checks) == ""


@pytest.mark.parametrize(
    "wrong",
    [("sizeof(struct prefix6)", 24), ("__builtin_offsetof(struct policy, words)", 0), ("REASON_RULE", 2)],
)
def test_the_compiler_would_say_so(wrong: tuple[str, int]) -> None:
    assert wrong[0] in compiled([wrong])


def test_every_struct_and_enum_of_the_header_was_read() -> None:
    header = (BPF_DIRECTORY / "layout.h").read_text(encoding="utf-8")
    assert set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE)) == set(LAYOUT.structs)
    assert set(re.findall(r"^enum (\w+) \{", header, re.MULTILINE)) == set(LAYOUT.enums)


def test_the_loaded_maps_hold_keys_and_values_of_that_size(shared: Loaded) -> None:
    maps = shared.kernel._set.maps
    assert set(VALUES) == set(NAMES) - {
        "policy_vectors",
        "policy_search",
        "scratch",
        "report_rooms",
        "reports",
    }  # all but the first are the programs' own, or have neither keys nor values
    sizes = {name: (maps[name].info.key_size, maps[name].info.value_size) for name in VALUES}
    assert sizes == {name: (key.itemsize, value.itemsize) for name, (key, value) in VALUES.items()}
    assert maps["policy_vectors"].info.value_size == 8 * (-(-shared.enforcer._limits.rules // 64) + 1)


@pytest.mark.parametrize(
    ("words", "summaries"), [(1, 1), (2, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3), (256, 4)]
)
def test_the_words_of_a_vector_are_told_from_its_size(words: int, summaries: int) -> None:
    assert vector_words(8 * (words + summaries)) == words


def test_names_of_maps_in_the_kernel_are_those_of_their_pins(shared: Loaded) -> None:
    """What an operator sees in bpftool map; the kernel keeps 15 characters."""
    maps = shared.kernel._set.maps
    assert {name: maps[name].info.name for name in NAMES} == {name: name[:15] for name in NAMES}


def test_reasons_keep_their_numbers() -> None:
    """Appending is all that may happen here: numbers are counters and labels that outlive a program."""
    assert REASONS[:10] == (
        "default", "rule", "not_ip", "fragment", "malformed_link", "malformed_ipv4", "malformed_ipv6",
        "malformed_extension", "malformed_l4", "malformed_fragment",
    )  # fmt: skip
    assert REASONS[10:13] == ("never_drop", "essential", "panic")


def test_the_documentation_explains_every_reason_in_its_order() -> None:
    text = (Path(ROOT) / "docs" / "drop-reasons.md").read_text(encoding="utf-8")
    explained = [
        name for name in re.findall(r"^\|\s*(?:\d+\s*\|\s*)?`(\w+)`", text, re.MULTILINE) if name in REASONS
    ]
    assert explained == list(REASONS)
