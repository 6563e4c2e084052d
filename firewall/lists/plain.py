"""Plain text: an address, a CIDR or a range a line; netset files are that too.

`#` and `;` begin a comment, on a line of its own or behind an entry. Comments are not kept.
"""

from __future__ import annotations

import re

from firewall.lists.collector import Collector, Rows
from firewall.lists.lines import texts_of

_COMMENT = re.compile(rb"[#;][^\n]*")


class PlainLines:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def take(self, chunk: bytes, first: int) -> None:
        if b"#" in chunk or b";" in chunk:
            chunk = _COMMENT.sub(b"", chunk)
        if b" " in chunk or b"\t" in chunk:
            chunk = b"\n".join([line.strip(b" \t") for line in chunk.split(b"\n")])
        if self._collector.take_ipv4(chunk):
            return
        lines = [line.strip() for line in texts_of(chunk, first, self._collector.bad)]
        rows = [at for at, text in enumerate(lines) if text]
        self._collector.take(Rows([lines[at] for at in rows], [first + at for at in rows]))
