"""Compiled programs: instructions that name maps, their form as text, and the files that they are kept in."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from firewall.kernel import program_cache
from firewall.kernel.compiled import Code, Compiled, MapShape
from firewall.kernel.program_cache import MOST_FILES, compiled
from firewall.kernel.source import Order

ORDER = Order("int f(void) { return 0; }", ("-DA=1",), ("f",))
LOAD_MAP = struct.pack("=BBhi", 0x18, 0x12, 0, 7) + bytes(8)  # r2 = the map of descriptor 7
LOAD_NUMBER = struct.pack("=BBhi", 0x18, 0x02, 0, 7) + bytes(8)  # r2 = 7
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
MADE = Compiled(
    "0.26.0", b"\x9f\xeb", {"hits": MapShape(1, 4, 8, 16, 1, 2, 3)},
    {"f": Code.taken(LOAD_NUMBER + LOAD_MAP + EXIT, {7: "hits"})},
)  # fmt: skip


def test_only_loads_of_maps_are_linked() -> None:
    code = MADE.programs["f"]
    assert code.maps == {16: "hits"}
    assert code.instructions[16:32] == struct.pack("=BBhi", 0x18, 0x12, 0, 0) + bytes(8)
    other = struct.pack("=BBhi", 0x18, 0x12, 0, 99) + bytes(8)
    assert code.linked({"hits": 99}) == LOAD_NUMBER + other + EXIT


def test_the_second_half_of_a_load_is_no_instruction() -> None:
    # The upper half of this number looks like a load of a map.
    number = struct.pack("=BBhi", 0x18, 0x02, 0, 7) + struct.pack("=BBhi", 0x18, 0x12, 0, 7)
    assert Code.taken(number + EXIT, {}).maps == {}


def test_what_was_written_is_read() -> None:
    assert Compiled.from_text(MADE.to_text()) == MADE


class Compiler:
    def __init__(self) -> None:
        self.orders: list[Order] = []

    def __call__(self, order: Order) -> Compiled:
        self.orders.append(order)
        return MADE


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(program_cache, "compile_programs", made)
    return made


def kept_file(directory: Path) -> Path:
    (file,) = directory.glob("*.programs")
    return file


def test_the_same_is_compiled_once(compiler: Compiler, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    assert [compiled(ORDER, directory) for _ in range(3)] == [MADE] * 3
    assert len(compiler.orders) == 1
    assert directory.stat().st_mode & 0o777 == 0o700
    assert kept_file(directory).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "other",
    [
        Order(ORDER.text + " ", ORDER.flags, ORDER.programs),
        Order(ORDER.text, ("-DA=2",), ORDER.programs),
        Order(ORDER.text, ORDER.flags, ("f", "g")),
    ],
)
def test_what_differs_is_compiled(compiler: Compiler, tmp_path: Path, other: Order) -> None:
    compiled(ORDER, tmp_path)
    compiled(other, tmp_path)
    assert compiler.orders == [ORDER, other]


def test_another_kernel_or_compiler_is_another_file(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(ORDER, tmp_path)
    monkeypatch.setattr("platform.release", lambda: "9.9.9")
    compiled(ORDER, tmp_path)
    monkeypatch.setattr(program_cache, "bcc_version", lambda: "9.9")
    compiled(ORDER, tmp_path)
    assert len(compiler.orders) == 3


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"0" * 64 + b"\n{}", b"nothing\n" + MADE.to_text().encode()]
)
def test_a_damaged_file_is_compiled_anew_and_mended(
    compiler: Compiler, tmp_path: Path, content: bytes
) -> None:
    compiled(ORDER, tmp_path)
    kept_file(tmp_path).write_bytes(content)
    assert compiled(ORDER, tmp_path) == MADE
    assert compiled(ORDER, tmp_path) == MADE
    assert len(compiler.orders) == 2


@pytest.mark.parametrize("place", ["file", "directory"])
def test_what_others_may_write_is_not_believed(compiler: Compiler, tmp_path: Path, place: str) -> None:
    compiled(ORDER, tmp_path)
    (kept_file(tmp_path) if place == "file" else tmp_path).chmod(0o777)
    compiled(ORDER, tmp_path)
    assert len(compiler.orders) == 2


def test_where_nothing_can_be_kept_it_is_compiled_each_time(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file" / "cache", None):
        assert compiled(ORDER, directory) == MADE
    assert len(compiler.orders) == 2


def test_the_files_used_last_stay(compiler: Compiler, tmp_path: Path) -> None:
    for number in range(MOST_FILES + 3):
        compiled(ORDER, tmp_path)
        compiled(Order(ORDER.text, (f"-DA={number + 2}",), ORDER.programs), tmp_path)
    assert len(list(tmp_path.iterdir())) == MOST_FILES
    assert compiler.orders.count(ORDER) == 1
