"""What `ipset save` writes: `create` and `add` lines, with `timeout` and `comment` of entries.

Owns which entries are meant: one set of each family. Entries with ports or interfaces name no address alone and are
bad lines, as exceptions (`nomatch`) are: taken as entries they would block what the list spares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from firewall.lists.collector import Collector, Rows
from firewall.lists.lines import texts_of

_USUAL = re.compile(r'add (\S+) (\S+)(?: timeout ([0-9]{1,10}))?(?: comment "([^"]*)")?')
_ADD = re.compile(r"(?:add|-A|--add) +(\S+) +(\S+)(.*)")
_CREATE = re.compile(r"(?:create|-N|--create) +(\S+) +(\S+)(.*)")
_OPTION = re.compile(
    r' *(timeout|comment|nomatch|packets|bytes|skbmark|skbprio|skbqueue)(?: +("[^"]*"|[^\s"]+))?'
)
_DEFAULT_TIMEOUT = re.compile(r"(?<!\S)timeout +(\d+)")
_SKIPPED = ("#", "COMMIT", "flush ", "-F ", "destroy ", "-X ")
_FLAGS = ("nomatch",)


class IpsetLines:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._now = round(collector.now, 3)
        self._names: dict[bool, str] = {}  # by whether it is IPv6
        self._default_ttl: dict[str, int] = {}

    def take(self, chunk: bytes, first: int) -> None:
        texts: list[str] = []
        numbers: list[int] = []
        ends: list[float | None] = []
        comments: list[str] = []
        for number, line in enumerate(texts_of(chunk, first, self._collector.bad), first):
            usual = _USUAL.fullmatch(line)
            try:
                if usual is not None:
                    name, entry, timeout, comment = usual.groups("")
                    ttl = int(timeout) if timeout else self._default_ttl.get(name)
                else:
                    unusual = self._unusual(line.strip())
                    if unusual is None:
                        continue
                    name, entry, ttl, comment = unusual
                self._check_name(name, entry)
            except ValueError as error:
                self._collector.bad(number, str(error))
                continue
            texts.append(entry)
            numbers.append(number)
            ends.append(None if ttl is None else self._now + ttl if ttl else 0.0)
            comments.append(comment)
        self._collector.take(Rows(texts, numbers, _unless_none(ends), comments))

    def _unusual(self, text: str) -> tuple[str, str, int | None, str] | None:
        """Of an `add` line: name, entry, timeout, comment. Raises ValueError."""
        if not text or text.startswith(_SKIPPED):
            return None
        added = _ADD.fullmatch(text)
        if added is None:
            self._create(text)
            return None
        name, entry, options = added.groups()
        timeout, comment = self._options(options)
        return name, entry, self._default_ttl.get(name) if timeout is None else timeout, comment

    def _create(self, text: str) -> None:
        """Raises ValueError."""
        created = _CREATE.fullmatch(text)
        if created is None:
            raise ValueError(f"{text[:60]!r} is not a line of ipset save")
        name, kind, options = created.groups()
        if kind not in ("hash:ip", "hash:net", "iphash", "nethash"):
            raise ValueError(f"{name} is a {kind}; only hash:ip and hash:net hold addresses alone")
        if timeout := _DEFAULT_TIMEOUT.search(options):
            self._default_ttl[name] = int(timeout[1][:10])

    def _check_name(self, name: str, entry: str) -> None:
        """Raises ValueError."""
        if "," in entry:
            raise ValueError(f"{entry!r} is more than an address")
        expected = self._names.setdefault(":" in entry, name)
        if name != expected:
            raise ValueError(
                f"is of the set {name}, and the list of {expected}; save one: ipset save {expected}"
            )

    def _options(self, options: str) -> tuple[int | None, str]:
        """Timeout and comment. Raises ValueError."""
        timeout, comment, at = None, "", 0
        while at < len(options):
            found = _OPTION.match(options, at)
            if found is None or (found[2] is None and found[1] not in _FLAGS):
                raise ValueError(f"{options[at:].strip()[:60]!r} is no option of an entry")
            name, value = found[1], found[2]
            if name == "nomatch":
                raise ValueError("is an exception (nomatch), which sets do not have: give an allow rule")
            if name == "timeout":
                if not (value.isascii() and value.isdecimal() and len(value) <= 10):
                    raise ValueError(f"timeout {value!r} is not a number of seconds")
                timeout = int(value)
            elif name == "comment":
                comment = value.strip('"')
            at = found.end()
            while at < len(options) and options[at] == " ":
                at += 1
        return timeout, comment


def _unless_none(ends: Sequence[float | None]) -> Sequence[float | None] | None:
    return ends if any(end is not None for end in ends) else None
