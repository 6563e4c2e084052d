"""Every relative link in the documentation leads somewhere, to the heading that it names as well."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|!\[[^\]]*\]\(([^)\s]+)[^)]*\)")
CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]*`", re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
NOT_OURS = {".venv", ".git", "build", "dist", "node_modules", ".pytest_cache"}


def documents() -> list[Path]:
    return sorted(
        path for path in ROOT.rglob("*.md") if not NOT_OURS.intersection(path.relative_to(ROOT).parts)
    )


def links(text: str) -> list[str]:
    return [first or second for first, second in LINK.findall(CODE.sub("", text))]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(
        r"^#{1,6}\s+(.+?)\s*#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_broken(document: Path, link: str) -> bool:
    if SCHEME.match(link):
        return False
    path, _, anchor = unquote(link).partition("#")
    target = document.parent / path if path else document
    if not target.exists():
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in anchors(target.read_text())


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = [link for link in links(document.read_text()) if is_broken(document, link)]
    assert not broken, f"{document.relative_to(ROOT)}: {', '.join(broken)}"


@pytest.mark.parametrize(
    ("link", "broken"),
    [("there.md", False), ("gone.md", True), ("there.md#a-title", False), ("there.md#other", True),
     ("#own", False), ("https://example.org/x", False)],
)  # fmt: skip
def test_a_broken_link_is_found(tmp_path: Path, link: str, broken: bool) -> None:
    (tmp_path / "there.md").write_text("# A `title`!\n")
    document = tmp_path / "from.md"
    document.write_text(f"## Own\n[text]({link}) and `[not](a-link)`\n")
    assert links(document.read_text()) == [link]
    assert is_broken(document, link) is broken
