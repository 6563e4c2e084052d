"""What the machine sees of this host: a copy of the project as it is in this checkout, and files of the test.

A copy, because 9p caches and others may edit meanwhile.
"""

from __future__ import annotations

import compileall
import shutil
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

from tests.vm import root

PARTS = (
    "api", "benchmarks", "bpf", "cli", "feeds", "firewall", "integrations", "scripts", "systemd", "tests",
    "pyproject.toml",
)  # fmt: skip


def copy_project(shared: Path, more: Path | None) -> None:
    """Fills the directory `shared`: the project below `project`, the files of `more` beside it."""
    project = shared / "project"
    project.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.building")
    for part in PARTS:
        source = root.PROJECT / part
        if source.is_dir():
            shutil.copytree(source, project / part, ignore=ignore, symlinks=True)
        elif source.exists():
            shutil.copy(source, project / part)
    if more is not None:
        shutil.copytree(more, shared, dirs_exist_ok=True)
    if f"{sys.version_info.major}.{sys.version_info.minor}" == root.PYTHON:
        # Emulation compiles some twenty times slower.
        compileall.compile_dir(project, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
