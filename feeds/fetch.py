"""A list as bytes from where it is: a URL or a file.

Owns HTTP: whether it changed (ETag, Last-Modified), redirects, how long and how much. What the bytes mean is not its.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from feeds.errors import FeedFailed
from feeds.unpacking import Unpacker

MOST_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 30.0  # between two parts of an answer
CHUNK_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Validators:
    """What says whether a list is still the one that was read."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True)
class Source:
    url: str | None
    file: Path | None
    timeout_s: float
    most_bytes: int
    user_agent: str


class Fetch:
    """An answer whose bytes are still to come: `parts()`. `is_unchanged`: there are none."""

    def __init__(
        self, parts: AsyncIterator[bytes], validators: Validators, media_type: str = "", name: str = ""
    ) -> None:
        self._parts = parts
        self.validators, self.media_type, self.name = validators, media_type, name
        self.is_unchanged = False

    def parts(self) -> AsyncIterator[bytes]:
        return self._parts


@asynccontextmanager
async def fetching(source: Source, known: Validators) -> AsyncIterator[Fetch]:
    """Raises FeedFailed, from the body of the `async with` too."""
    try:
        async with asyncio.timeout(source.timeout_s):
            if source.file is not None:
                yield await _open_file(source.file, source.most_bytes, known)
                return
            async with _client(source) as client:
                yield await _ask(client, source, known)
    except TimeoutError:
        raise FeedFailed("timeout", f"it took longer than {source.timeout_s:g} s", "raise timeout") from None
    except httpx.TimeoutException as error:
        detail = f"nothing came for too long ({type(error).__name__})"
        raise FeedFailed("timeout", detail) from None
    except httpx.HTTPError as error:
        raise FeedFailed("unreachable", f"{str(error) or type(error).__name__}", _hint(error)) from None
    except (httpx.InvalidURL, UnicodeError) as error:
        raise FeedFailed("unreachable", f"{error}") from None


def _hint(error: BaseException | None) -> str:
    """Where the kernel forbade it: a unit with IPAddressDeny=, as ours is."""
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__ or error.__context__
    return (
        ""
        if error is None
        else "allow it in the unit: `systemctl edit ebpf-fw`, [Service] IPAddressAllow=any"
    )


def _client(source: Source) -> httpx.AsyncClient:
    timeout = httpx.Timeout(min(SILENCE_S, source.timeout_s), connect=CONNECT_TIMEOUT_S)
    headers = {"User-Agent": source.user_agent, "Accept": "*/*", "Accept-Encoding": "gzip"}
    return httpx.AsyncClient(timeout=timeout, headers=headers, follow_redirects=False)


async def _ask(client: httpx.AsyncClient, source: Source, known: Validators) -> Fetch:
    assert source.url is not None
    url = httpx.URL(source.url)
    headers = {}
    if known.etag:
        headers["If-None-Match"] = known.etag
    if known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    for _ in range(MOST_REDIRECTS + 1):
        answer = await client.send(client.build_request("GET", url, headers=headers), stream=True)
        if answer.status_code not in _REDIRECTS:
            return _answered(answer, source, known)
        url = _redirected(url, answer)
        await answer.aclose()
    raise FeedFailed("redirect", f"more than {MOST_REDIRECTS} redirects")


def _redirected(url: httpx.URL, answer: httpx.Response) -> httpx.URL:
    location = answer.headers.get("location", "")
    try:
        target = url.join(location)
    except httpx.InvalidURL:
        target = httpx.URL("")
    if target.scheme not in ("http", "https") or not target.host:
        raise FeedFailed("redirect", f"redirected to {location!r}, which is no http or https URL")
    if url.scheme == "https" and target.scheme == "http":
        detail = f"redirected from https to {target.copy_with(username=None, password=None)}, which anybody may change"
        raise FeedFailed("redirect", detail, "give that URL as the feed's if you want it")
    return target


def _answered(answer: httpx.Response, source: Source, known: Validators) -> Fetch:
    if answer.status_code == 304 and (known.etag or known.last_modified):
        fetch = Fetch(_nothing(), known)
        fetch.is_unchanged = True
        return fetch
    if answer.status_code != 200:
        detail = f"answered {answer.status_code} {answer.reason_phrase}".strip()
        raise FeedFailed("http_status", detail, retry_after_s=_retry_after(answer))
    length = answer.headers.get("content-length", "")
    if length.isdecimal() and int(length) > source.most_bytes:
        raise FeedFailed("too_large", f"the list is larger than max_bytes, {source.most_bytes:,}")
    unpacker = Unpacker(source.most_bytes, answer.headers.get("content-encoding", "").strip().lower())
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    name = answer.url.path.removesuffix(".gz")
    return Fetch(_unpacked(answer, unpacker), _validators(answer), media_type, name)


def _validators(answer: httpx.Response) -> Validators:
    """None where the list may change again within the second that its date tells (RFC 9110, 8.8.2.2).

    Nor the ETag then: servers of files make theirs of the size and that second.
    """
    known = Validators(answer.headers.get("etag", "")[:512], answer.headers.get("last-modified", "")[:128])
    if not known.last_modified:
        return known
    modified, answered = _date(known.last_modified), _date(answer.headers.get("date", ""))
    if modified is None:
        return Validators(known.etag)
    return known if modified <= (answered or time.time()) - 1 else Validators()


async def _unpacked(answer: httpx.Response, unpacker: Unpacker) -> AsyncIterator[bytes]:
    try:
        async for packed in answer.aiter_raw(CHUNK_BYTES):
            for part in unpacker.feed(packed):
                yield part
        for part in unpacker.end():
            yield part
    finally:
        await answer.aclose()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds, from the header's number or date."""
    text = answer.headers.get("retry-after", "")
    if text.isdecimal() and len(text) < 8:
        return float(text)
    date = _date(text)
    return None if date is None else max(0.0, date - time.time())


def _date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date; None if it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


async def _open_file(file: Path, most_bytes: int, known: Validators) -> Fetch:
    try:
        found = await asyncio.to_thread(os.stat, file)
    except OSError as error:
        raise FeedFailed("unreadable", f"{file}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise FeedFailed("unreadable", f"{file} is not a file")
    validators = Validators(f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
    fetch = Fetch(_file_parts(file, Unpacker(most_bytes)), validators, name=file.name.removesuffix(".gz"))
    fetch.is_unchanged = validators == known
    return fetch


async def _file_parts(file: Path, unpacker: Unpacker) -> AsyncIterator[bytes]:
    try:
        opened: Any = await asyncio.to_thread(file.open, "rb")
        try:
            while packed := await asyncio.to_thread(opened.read, CHUNK_BYTES):
                for part in unpacker.feed(packed):
                    yield part
        finally:
            opened.close()
    except OSError as error:
        raise FeedFailed("unreadable", f"{file}: {error.strerror}") from None
    for part in unpacker.end():
        yield part
