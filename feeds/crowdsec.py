"""A CrowdSec bouncer: the decisions of a local API, as they come, into a set.

Owns the protocol (GET /v1/decisions/stream, as the local API's Swagger document has it), when to ask again after a
failure, and when to ask for everything: at the start, after any failure, and when something went that was never told.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import orjson
import structlog

from feeds.decisions import Decisions
from feeds.feed import Around
from feeds.sets import CROWDSEC_SOURCE as SOURCE
from firewall.errors import FirewallError
from firewall.settings import CrowdSec

log = structlog.get_logger(__name__)

MOST_BYTES = 256 << 20
LONGEST_WAIT_S = 300.0
FORBIDDEN_WAIT_S = 60.0
State = Literal["connecting", "streaming", "forbidden", "failing"]
STATES: tuple[State, ...] = ("connecting", "streaming", "forbidden", "failing")
_KEY_HINT = "`cscli bouncers add ebpf-fw` makes a key for api_key or api_key_file"


class _Failed(Exception):
    def __init__(self, state: State, detail: str, hint: str = "") -> None:
        super().__init__(detail if not hint else f"{detail} ({hint})")
        self.state: State = state


@dataclass
class Progress:
    """Times: seconds since 1970. `told`, `taken_back`: decisions since the service started."""

    state: State = "connecting"
    error: str = ""
    error_at: float | None = None
    failures: int = 0
    last_pull: float | None = None
    last_full: float | None = None
    told: int = 0
    taken_back: int = 0


class Bouncer:
    """Everything is called in the event loop."""

    def __init__(self, settings: CrowdSec, around: Around) -> None:
        self.settings = settings
        self.progress = Progress()
        self.decisions = Decisions()
        self._around = around
        self._is_whole = False  # whether what came after the last whole answer came without a gap
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="crowdsec")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _follow(self) -> None:
        while True:
            client: httpx.AsyncClient | None = None
            try:
                client = await asyncio.to_thread(self._client)
                is_well = True
                while is_well:
                    is_well = await self._pull_noting(client)
                    if is_well:
                        await asyncio.sleep(self.settings.refresh)
            except OSError as error:  # of TLS files: ssl.SSLError is one
                self._note(_Failed("failing", f"TLS files: {error}"))
            except Exception as error:
                log.exception("crowdsec failed")
                self._note(_Failed("failing", repr(error)))
            finally:
                if client is not None:
                    await client.aclose()
            await asyncio.sleep(self._wait_s())

    def _wait_s(self) -> float:
        if self.progress.state == "forbidden":
            return max(FORBIDDEN_WAIT_S, self.settings.refresh) * self._around.jitter()
        wait = self.settings.refresh * 2.0 ** min(self.progress.failures - 1, 16)
        return min(wait, LONGEST_WAIT_S) * self._around.jitter()

    def _client(self) -> httpx.AsyncClient:
        settings = self.settings
        verify: ssl.SSLContext | bool = False
        if settings.url is not None and settings.url.startswith("https:"):
            context = ssl.create_default_context(cafile=settings.ca_file and str(settings.ca_file))
            if settings.insecure_skip_verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if settings.cert_file is not None:
                context.load_cert_chain(str(settings.cert_file), str(settings.key_file))
            verify = context
        return httpx.AsyncClient(
            verify=verify,
            timeout=httpx.Timeout(settings.timeout, connect=10.0),
            headers={"User-Agent": self._around.user_agent, "Accept": "application/json"},
            trust_env=False,  # a local API is not behind a proxy for the web
        )

    async def _pull_noting(self, client: httpx.AsyncClient) -> bool:
        """Whether it went well."""
        try:
            await self._pull(client)
        except _Failed as failed:
            self._note(failed)
            return False
        if self.progress.state != "streaming":
            log.info("crowdsec streams", decisions=len(self.decisions), entries=self.decisions.addresses)
        self.progress.state = "streaming"
        self.progress.failures, self.progress.error, self.progress.error_at = 0, "", None
        return True

    def _note(self, failed: _Failed) -> None:
        progress, self._is_whole = self.progress, False
        if progress.state != failed.state or progress.error != str(failed):
            log.warning(
                "crowdsec gives nothing",
                state=failed.state,
                detail=str(failed),
                entries=self.decisions.addresses,
            )
        progress.state, progress.error, progress.error_at = failed.state, str(failed), self._around.clock()
        progress.failures += 1

    async def _pull(self, client: httpx.AsyncClient) -> None:
        """Raises _Failed."""
        is_startup = not self._is_whole
        if is_startup:
            await self._claim()
        document = await self._ask(client, is_startup)
        now = self._around.clock()
        new, deleted = _decisions(document, "new"), _decisions(document, "deleted")
        self.progress.told += len(new)
        self.progress.taken_back += len(deleted)
        try:
            if is_startup:
                self.decisions.own = await asyncio.to_thread(self._around.own)
                await asyncio.to_thread(self.decisions.begin, new, now)
                columns = await asyncio.to_thread(self.decisions.entries)
                await self._around.sets.replace(self.settings.set, columns, SOURCE)
                self.progress.last_full, self._is_whole = now, True
            else:
                await self._change(new, deleted, now)
        except FirewallError as error:
            raise _Failed("failing", f"the firewall refused the decisions: {error}") from None
        self.progress.last_pull = now

    async def _claim(self) -> None:
        try:
            about = f"decisions of CrowdSec at {self.settings.url}"
            await self._around.sets.claim(self.settings.set, SOURCE, about)
        except FirewallError as error:
            raise _Failed("failing", str(error)) from None

    async def _change(
        self, new: Sequence[Mapping[str, Any]], deleted: Sequence[Mapping[str, Any]], now: float
    ) -> None:
        """First what comes, so that an address with a new decision is not let through in between."""
        touched = await asyncio.to_thread(self.decisions.change, new, deleted, now)
        if touched.is_unsure:
            self._is_whole = False
        sets, name = self._around.sets, self.settings.set
        if columns := await asyncio.to_thread(self.decisions.entries, touched.prefixes):
            await sets.add(name, columns, SOURCE)
        if columns := await asyncio.to_thread(self.decisions.gone, touched.prefixes):
            await sets.delete(name, columns, SOURCE)

    async def _ask(self, client: httpx.AsyncClient, is_startup: bool) -> Mapping[str, Any]:
        settings = self.settings
        assert settings.url is not None
        query = {"startup": "true" if is_startup else "false", "scopes": ",".join(settings.scopes)}
        lists = (
            ("origins", settings.origins),
            ("scenarios_containing", settings.scenarios),
            ("scenarios_not_containing", settings.not_scenarios),
        )
        query |= {name: ",".join(words) for name, words in lists if words}
        url = settings.url.rstrip("/").removesuffix("/v1") + "/v1/decisions/stream"
        headers = await asyncio.to_thread(self._key)
        try:
            async with (
                asyncio.timeout(settings.timeout),
                client.stream("GET", url, params=query, headers=headers) as answer,
            ):
                body = await _body(answer)
        except TimeoutError:
            raise _Failed("failing", f"no answer within {settings.timeout} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Failed("failing", f"{settings.url}: {str(error) or type(error).__name__}") from None
        return await asyncio.to_thread(_document, body)

    def _key(self) -> dict[str, str]:
        """Read anew each time: a key may be changed while the service runs."""
        settings = self.settings
        if settings.api_key_file is not None:
            try:
                key = settings.api_key_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise _Failed("failing", f"api_key_file: {error}", _KEY_HINT) from None
        else:
            key = settings.api_key or ""
        if not key.isascii() or not key.isprintable():
            raise _Failed("forbidden", "the key has characters that no key has", _KEY_HINT)
        return {"X-Api-Key": key} if key else {}


async def _body(answer: httpx.Response) -> bytes:
    """Raises _Failed."""
    if answer.status_code in (401, 403):
        raise _Failed(
            "forbidden", f"the local API answered {answer.status_code}: it does not know this key", _KEY_HINT
        )
    if answer.status_code != 200:
        raise _Failed(
            "failing", f"the local API answered {answer.status_code} {answer.reason_phrase}".strip()
        )
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise _Failed("failing", f"the answer is larger than {MOST_BYTES:,} bytes")
    return bytes(body)


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Failed("failing", f"the answer is not JSON: {error}") from None
    if not isinstance(document, dict) or not {"new", "deleted"} & document.keys():
        raise _Failed("failing", "the answer is not a local API's: it has neither new nor deleted decisions")
    return document


def _decisions(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Where there are none, Go writes null."""
    found = document.get(name)
    if found is not None and not isinstance(found, list):
        raise _Failed("failing", f"the answer is not a local API's: {name} is no list")
    return [each for each in found or () if isinstance(each, dict)]
