"""The fuzzer of the packet parser: frames through the loaded programs, verdicts and reasons as the judges have them.

Owns running many frames fast and finding the one that went wrong. Each batch has a rule set, settings, a hook and a
link of its own; its seed makes it again. Frames are run in groups that must get the same verdict and reason, so
one look at the counters tells each frame's reason: where any other counter moved, the group is run frame by frame.
"""

from __future__ import annotations

import ctypes
import json
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.kernel import bpf
from tests import oracle
from tests.datapath.fuzz_frames import WIDTH, as_rows, every_cut, mutated
from tests.datapath.loaded import VERDICT_OF, Loaded, runnable
from tests.random_rules import random_rules
from tests.vector_judge import DROP, REASONS, Frames, Parsed, judge

HOOKS, LINKS = ("ingress", "egress"), ("ethernet", "ip")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"malformed": "pass"},
    {"fragments": "drop"},
    {"malformed": "pass", "fragments": "drop", "default_ingress": "drop", "default_egress": "drop"},
    {"default_ingress": "drop", "default_egress": "drop", "never_drop": ["10.0.0.0/10", "2001:db8::/33"]},
    {
        "default_ingress": "drop",
        "default_egress": "drop",
        "pass_arp": False,
        "pass_neighbor_discovery": False,
        "pass_dhcp": False,
        "pass_path_mtu": False,
    },
]
BATCH = 25_000
SAMPLE = 40  # frames of a batch that the naive oracle judges as well
# Of union bpf_attr, BPF_PROG_TEST_RUN (include/uapi/linux/bpf.h).
_ATTR = np.dtype(
    [("prog_fd", "<u4"), ("retval", "<u4"), ("size_in", "<u4"), ("size_out", "<u4"), ("data_in", "<u8"),
     ("data_out", "<u8"), ("repeat", "<u4"), ("duration", "<u4"), ("rest", "<u4", (10,))],
)  # fmt: skip
_SYSCALLS = {"x86_64": 321, "aarch64": 280}
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


class Disagreement(AssertionError):
    """A frame got another verdict or reason than the judges give. The message is all that is needed to try it again."""


@dataclass
class Batch:
    """What stands around the frames of one batch."""

    seed: int
    hook: str
    link: str
    settings: dict[str, Any]
    rules: list[dict[str, Any]] = field(default_factory=list)

    def naive(self, frame: bytes) -> tuple[str, str]:
        settings = self.settings
        found = oracle.judge(
            self.rules, frame, direction=self.hook, interface="any", link=self.link,
            default_action=settings.get(f"default_{self.hook}", "allow"),
            fragments=settings.get("fragments", "match"), malformed=settings.get("malformed", "drop"),
            never_drop=settings.get("never_drop", ()),
            **{name: value for name, value in settings.items() if name.startswith("pass_")},
        )  # fmt: skip
        return found.verdict, found.reason


def batches(seed: int) -> Iterator[tuple[Batch, Frames]]:
    """Without end. First every cut of the corpus on each hook and link, then mutations."""
    number = seed * 1_000_003
    for settings in SETTINGS:
        for link in LINKS:
            frames = list(every_cut(link))
            rules = _rules(number) if settings else []
            for hook in HOOKS:
                for at in range(0, len(frames), BATCH):
                    yield Batch(number, hook, link, settings, rules), as_rows(frames[at : at + BATCH])
        # The frames of the next settings meet another rule set.
        number += 1
    while True:
        for settings in SETTINGS:
            for link, weight in zip(LINKS, (3, 1), strict=True):
                for _ in range(weight):
                    number += 1
                    frames_of_both, rules = mutated(number, link, BATCH), _rules(number)
                    for hook in HOOKS:
                        yield Batch(number, hook, link, settings, rules), frames_of_both


def _rules(seed: int) -> list[dict[str, Any]]:
    """None in one of six, so that the plain reasons are met; few enough else that not every packet meets one."""
    rng = random.Random(seed)
    return random_rules(rng, rng.choice((0, 1, 2, 3, 6, 12)))


def run(firewall: Loaded, batch: Batch, frames: Frames) -> int:
    """The number of frames that were judged. Raises Disagreement."""
    firewall.configure(**batch.settings)
    firewall.rules(*batch.rules)
    frames = _fit(batch, frames)
    verdicts, reasons = judge(batch.rules, Parsed(frames, batch.link), batch.hook, batch.settings)
    _ask_oracle(batch, frames, verdicts, reasons)
    fd = firewall.program(batch.hook, batch.link)
    firewall.counted_since_last()
    for verdict in (0, 1):
        for reason in REASONS:
            rows = np.flatnonzero((verdicts == verdict) & (reasons == reason))
            if len(rows):
                _run_group(firewall, batch, fd, frames, rows, (_name(verdict), reason))
    return len(frames.size)


def _run_group(
    firewall: Loaded,
    batch: Batch,
    fd: int,
    frames: Frames,
    rows: npt.NDArray[np.intp],
    expected: tuple[str, str],
) -> None:
    returned = _test_runs(fd, frames, rows)
    wanted = next(code for code, name in VERDICT_OF[batch.hook].items() if name == expected[0])
    size = int(frames.size[rows].sum())
    counted = firewall.counted_since_last()
    if (returned == wanted).all() and counted == {(batch.hook, *expected): (len(rows), size)}:
        return
    for row in rows.tolist():
        frame = bytes(frames.data[row, : frames.size[row]])
        found = firewall.judge(frame, batch.hook, batch.link)
        if found != expected:
            raise Disagreement(_describe(batch, frame, f"judged {found}, expected {expected}"))
    raise Disagreement(
        f"seed {batch.seed}: {len(rows)} frames that must be {expected} were counted {counted}; "
        "each alone is judged rightly"
    )


def _test_runs(fd: int, frames: Frames, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
    """What the program returned for each row. The kernel writes it into the attr, so a run is one call and no more."""
    data = np.ascontiguousarray(frames.data[rows])
    attrs = np.zeros(len(rows), _ATTR)
    attrs["prog_fd"], attrs["repeat"], attrs["size_in"] = fd, 1, frames.size[rows]
    attrs["data_in"] = data.ctypes.data + np.arange(len(rows), dtype=np.uint64) * np.uint64(WIDTH)
    first, size = attrs.ctypes.data, _ATTR.itemsize
    call, number, command = _syscall, _SYSCALLS[platform.machine()], bpf.PROG_TEST_RUN
    for at in range(first, first + len(rows) * size, size):
        if call(number, command, at, size):
            row = rows[(at - first) // size]
            frame = bytes(frames.data[row, : frames.size[row]])
            raise OSError(ctypes.get_errno(), f"the kernel refused to run a frame: {frame.hex()}")
    return np.asarray(attrs["retval"])


def _fit(batch: Batch, frames: Frames) -> Frames:
    """Changes the frames that this kernel's test runs refuse: an IP type before less than an IP header."""
    kind = frames.data[:, 12].astype(np.int64) << 8 | frames.data[:, 13]
    header = np.select([kind == 0x0800, kind == 0x86DD], [20, 40], 0)
    refused = np.flatnonzero((batch.hook == "egress") & (frames.size - 14 < header))
    if not len(refused):
        return frames
    data, size = frames.data.copy(), frames.size.copy()
    for row in refused.tolist():
        if batch.link == "ip":
            data[row, 12] ^= 0x40  # a byte of an address, or of nothing
            continue
        frame = runnable(bytes(data[row, : size[row]]), batch.hook)
        data[row, : len(frame)], size[row] = np.frombuffer(frame, np.uint8), len(frame)
    return Frames(data, size)


def _ask_oracle(batch: Batch, frames: Frames, verdicts: Any, reasons: Any) -> None:
    """The fast judge must not be wrong in the same way as the program: a third, naive one looks at a sample."""
    for row in np.random.default_rng(batch.seed).integers(len(frames.size), size=SAMPLE).tolist():
        frame = bytes(frames.data[row, : frames.size[row]])
        fast, naive = (_name(verdicts[row]), str(reasons[row])), batch.naive(frame)
        if fast != naive:
            raise Disagreement(
                _describe(batch, frame, f"the judges differ: over arrays {fast}, naive {naive}")
            )


def _name(verdict: int) -> str:
    return "drop" if verdict == DROP else "pass"


def _describe(batch: Batch, frame: bytes, what: str) -> str:
    return (
        f"{what}\nseed {batch.seed}, {batch.hook}, link {batch.link}, filter {batch.settings}\n"
        f"rules {json.dumps(batch.rules)}\nframe {frame.hex()}"
    )


def write_failure(directory: Path, error: Disagreement) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "disagreement.txt"
    path.write_text(f"{error}\n", encoding="ascii")
    return path
