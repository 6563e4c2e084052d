"""Runs programs on many different packets (driver.c): the cost of each, and sending them to an interface.

Owns the frames that are sent and the two kinds of BPF_PROG_TEST_RUN. What stands in the frames is frames.py's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.errors import KernelRefused
from firewall.kernel import bpf
from firewall.kernel.bpf import Map
from firewall.kernel.source import UAPI, build_header_tree

FRAME_BYTES = 80
FRAMES_MAX = 1 << 20
XDP_ABORTED, XDP_DROP, XDP_PASS = 0, 1, 2

Frames = npt.NDArray[np.uint8]

_PROGRAMS = ("drive_redirect", "bare_pass", "bare_drop")
# A tail call is allowed where both programs were loaded alike: ours by bcc, xdp-filter by libbpf.
_BPF_XDP, _BPF_F_XDP_HAS_FRAGS = 37, 1 << 5
_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18
_CHUNK = 1 << 18
_PROG_TYPE_XDP = 6
_COURSE = np.dtype([("at", "<u8"), ("mask", "<u8"), ("ifindex", "<u8")])
_FRAME = np.dtype([("bytes", "u1", (FRAME_BYTES,))])


class Run(NamedTuple):
    """`verdict` of the last packet; `ns`: a packet, of all."""

    verdict: int
    ns: int


class _Load(NamedTuple):
    """Of union bpf_attr."""

    attach_type: int = 0
    flags: int = 0


_TAILS = (
    ("drive_tail", _Load()),
    ("drive_tail_attach", _Load(_BPF_XDP)),
    ("drive_tail_frags", _Load(_BPF_XDP, _BPF_F_XDP_HAS_FRAGS)),
)


class _Tail:
    """The driver for programs that were loaded in one way."""

    def __init__(self, module: Any, name: str, load: _Load) -> None:
        self.fd = _loaded(module.dump_func(name), name, load)
        self._target = Map(os.dup(module[name.replace("drive_tail", "target")].map_fd))

    def takes(self, program: int) -> bool:
        try:
            self._target.update(bytes(4), struct.pack("=I", program))
        except KernelRefused as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


class Driver:
    """Loaded once; `bare_pass` and `bare_drop` are descriptors of the programs that do nothing else."""

    def __init__(self, ingress_ifindex: int) -> None:
        """`ingress_ifindex`: by what the programs under test believe that packets came."""
        self._module = _compiled()
        fds: dict[str, int] = {name: self._module.load_func(name, self._module.XDP).fd for name in _PROGRAMS}
        self._redirect, self.bare_pass, self.bare_drop = (fds[name] for name in _PROGRAMS)
        self._tails = [_Tail(self._module, name, load) for name, load in _TAILS]
        self._frames = Map(os.dup(self._module["frames"].map_fd)).mapped(_FRAME)["bytes"]
        self._course = Map(os.dup(self._module["courses"].map_fd)).mapped(_COURSE)
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        self._context = struct.pack("=6I", 0, FRAME_BYTES, 0, ingress_ifindex, 0, 0)

    def load_frames(self, frames: Frames) -> None:
        """A power of two of them, each FRAME_BYTES long."""
        count = len(frames)
        if count & (count - 1) or count > FRAMES_MAX or frames.shape[1] != FRAME_BYTES:
            raise ValueError(f"{frames.shape} is not a power of two of frames of {FRAME_BYTES} bytes")
        self._frames[:count] = frames
        self._course["mask"] = count - 1
        self._course["at"] = 0

    def cost(self, program: int, packets: int) -> Run:
        """ns a packet of a program and the driver in front of it, the mean of the best quarter million (disturbance
        only ever adds); goes on where the last call ended."""
        tail = next((each.fd for each in self._tails if each.takes(program)), None)
        if tail is None:
            raise RuntimeError("the driver can call no program that was loaded like this one")
        runs = [self._run(tail, min(_CHUNK, packets - at), 0) for at in range(0, packets, _CHUNK)]
        if runs[-1].verdict == XDP_ABORTED:
            raise RuntimeError("the driver could not call the program")
        return Run(runs[-1].verdict, min(each.ns for each in runs))

    def send(self, ifindex: int, packets: int) -> float:
        """Sends frames into an interface; seconds that it took, the receiver's work on the same CPU included."""
        self._course["ifindex"] = ifindex
        started = time.perf_counter()
        for at in range(0, packets, _CHUNK):
            self._run(self._redirect, min(_CHUNK, packets - at), _LIVE_FRAMES)
        return time.perf_counter() - started

    def rewind(self) -> None:
        self._course["at"] = 0

    def _run(self, program: int, repeat: int, flags: int) -> Run:
        return run_program(program, bytes(FRAME_BYTES), repeat, b"" if flags else self._context, flags)


def run_program(program: int, frame: bytes, repeat: int, context: bytes = b"", flags: int = 0) -> Run:
    """BPF_PROG_TEST_RUN (union bpf_attr, struct test)."""
    data = ctypes.create_string_buffer(frame, len(frame))
    holder = ctypes.create_string_buffer(context, len(context)) if context else None
    at = ctypes.addressof(holder) if holder is not None else 0
    attr = struct.pack(
        "=IIIIQQIIIIQQIII", program, 0, len(frame), 0, ctypes.addressof(data), 0,
        repeat, 0, len(context), 0, at, 0, flags, 0, 0,
    )  # fmt: skip
    _, after = bpf.call(bpf.PROG_TEST_RUN, attr, "running a program on test packets")
    (verdict,) = struct.unpack_from("=I", after, 4)
    (ns,) = struct.unpack_from("=I", after, 36)
    return Run(verdict, ns)


def _loaded(instructions: bytes, name: str, load: _Load) -> int:
    """BPF_PROG_LOAD of what bcc compiled, with attributes that bcc cannot set."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII", _PROG_TYPE_XDP, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        0, 0, 0, 0, load.flags, name.encode()[:15], 0, load.attach_type,
    )  # fmt: skip
    return bpf.call(bpf.PROG_LOAD, attr, f"loading {name}")[0]


def _compiled() -> Any:
    import bcc

    text = "".join(f"#include <uapi/linux/{name}.h>\n" for name in UAPI)
    text += Path(__file__).with_name("driver.c").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-bench-") as directory:
        os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
        return bcc.BPF(text=text, cflags=[f"-DFRAME_COUNT={FRAMES_MAX}", "-Wno-unused-function"])
