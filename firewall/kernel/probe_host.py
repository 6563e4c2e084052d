"""Owns what the host must offer: privileges, kernel, bpf(2), bpffs, bcc, headers, JIT. It changes nothing.

Each finding is a pure function of what was read, so that every outcome can be tested on any machine;
`findings` does the reading.
"""

import errno
import platform
import re
import sys
import sysconfig
from pathlib import Path

from firewall.kernel import capability, probe_bpf
from firewall.kernel.finding import Finding, fail, ok, warn

KERNEL_MINIMUM = (5, 10)
BCC_MINIMUM = (0, 26)
SYSTEM_BCC = Path("/usr/lib/python3/dist-packages/bcc")

_AS_ROOT = "sudo ebpf-fw check"


def findings() -> list[Finding]:
    tried = _try_bpf()
    version, error = _import_bcc()
    return [
        privileges(Path("/proc/self/status").read_text()),
        kernel(platform.release()),
        bpf_syscall(tried),
        bpffs(Path("/proc/mounts").read_text()),
        bcc(version, error, on_system=SYSTEM_BCC.exists()),
        headers(_missing_headers()),
        jit(_read(Path("/proc/sys/net/core/bpf_jit_enable")), tried),
    ]


def privileges(status: str) -> Finding:
    """`status` is the text of /proc/self/status. CAP_SYS_ADMIN stands in for the two younger capabilities."""
    held = capability.effective(status)
    is_admin = capability.SYS_ADMIN in held
    wanted = {"CAP_NET_ADMIN": capability.NET_ADMIN}
    if not is_admin:
        wanted |= {"CAP_BPF": capability.BPF, "CAP_PERFMON": capability.PERFMON}
    missing = [name for name, bit in wanted.items() if bit not in held]
    if missing:
        return fail("privileges", f"missing {', '.join(missing)}", _AS_ROOT)
    if not is_admin:
        return warn(
            "privileges",
            "no CAP_SYS_ADMIN: bpffs is not mounted by us, programs have a name only where they are pinned, no offload",
        )
    return ok("privileges", "every capability that is needed")


def kernel(release: str) -> Finding:
    minimum = ".".join(map(str, KERNEL_MINIMUM))
    version = _version(release)
    if version is None:
        return warn("kernel", f"{release}: not a version we can read; {minimum} or newer is needed")
    if version < KERNEL_MINIMUM:
        return fail("kernel", f"{release} is older than {minimum}", f"boot a kernel {minimum} or newer")
    return ok("kernel", release)


def bpf_syscall(tried: int | OSError) -> Finding:
    """`tried` is the JIT length of a program that was loaded and closed, or why the kernel refused."""
    if isinstance(tried, int):
        return ok("bpf", "a map was created and an XDP program loaded, then closed")
    name = errno.errorcode.get(tried.errno or 0, "")
    mend = {
        "EPERM": f"{_AS_ROOT} (in a container: CAP_BPF, CAP_NET_ADMIN, a seccomp profile that allows bpf)",
        "ENOSYS": "boot a kernel with CONFIG_BPF_SYSCALL=y",
    }.get(name)
    return fail("bpf", f"bpf() is refused: {tried.strerror or tried}" + (f" ({name})" if name else ""), mend)


def bpffs(mounts: str) -> Finding:
    """`mounts` is the text of /proc/mounts. The service mounts bpffs itself, so its absence is no failure."""
    if any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts.splitlines()):
        return ok("bpffs", "mounted at /sys/fs/bpf")
    return warn(
        "bpffs",
        "not mounted at /sys/fs/bpf; the service mounts it when it starts",
        "mount -t bpf bpf /sys/fs/bpf",
    )


def bcc(version: str | None, error: str | None, *, on_system: bool) -> Finding:
    """`version` is None where the import failed with `error`; `on_system`: Debian's package is installed."""
    if version is None:
        detail = f"{sys.executable} cannot import bcc: {error}"
        if on_system and "No module named" in str(error):
            detail += "; python3-bpfcc is installed, but this Python does not see the system's packages"
            return fail("bcc", detail, "/usr/bin/python3 -m venv --system-site-packages --clear .venv")
        return fail("bcc", detail, "apt-get install python3-bpfcc")
    if (_version(version) or (0, 0)) < BCC_MINIMUM:
        return warn("bcc", f"{version}; nothing older than {'.'.join(map(str, BCC_MINIMUM))} has been tested")
    return ok("bcc", version)


def headers(missing: list[str]) -> Finding:
    if missing:
        detail = f"missing {', '.join(missing)}: bcc cannot compile the filter"
        return fail("headers", detail, "apt-get install linux-libc-dev")
    return ok("headers", "/usr/include/linux (kernel headers are not needed)")


def jit(setting: str | None, tried: int | OSError) -> Finding:
    """`setting` is the sysctl's text, None inside a network namespace; there the loaded program tells."""
    mend = "sysctl -w net.core.bpf_jit_enable=1"
    if setting == "0":
        return warn("jit", "off: the filter is interpreted and several times slower", mend)
    if setting == "2":
        return warn("jit", "in debug mode: the kernel log gets the code of every program", mend)
    if setting is None and not (isinstance(tried, int) and tried > 0):
        return warn("jit", "cannot be seen from here (a network namespace, or a kernel without a JIT)")
    return ok("jit", "on")


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _try_bpf() -> int | OSError:
    try:
        return probe_bpf.load_xdp_and_map()
    except OSError as error:
        return error


def _import_bcc() -> tuple[str | None, str | None]:
    """Version and None, or None and the reason."""
    try:
        import bcc as module
    except (ImportError, OSError) as error:  # OSError: libbcc.so itself is missing or broken
        return None, str(error)
    if not hasattr(module, "BPF"):
        return None, f"{module.__file__} is another package of that name"
    return str(getattr(module, "__version__", "unknown")), None


def _missing_headers() -> list[str]:
    include = Path("/usr/include")
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    of_machine = (include / triplet / "asm/types.h", include / "asm/types.h")
    missing = [path for path in (include / "linux/bpf.h", include / "linux/pkt_cls.h") if not path.exists()]
    if not any(path.exists() for path in of_machine):
        missing.append(of_machine[0])
    return [str(path) for path in missing]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
