"""A web server on loopback that answers as a test says, byte by byte where it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

Handler = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


class Request:
    def __init__(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.path, _, query = self.target.partition("?")
        self.query = dict(each.partition("=")[::2] for each in query.split("&") if each)
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}


class ListServer:
    """`answers`: by path, a function that writes the answer. `requests`: all that came."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.requests: list[Request] = []

    async def __aenter__(self) -> ListServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            request = Request(head.decode("latin-1").removesuffix("\r\n\r\n"))
            self.requests.append(request)
            await self.answers.get(request.path, answer(404, b"nothing"))(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which some tests want
        finally:
            writer.close()


def raw(content: bytes) -> Handler:
    async def write(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return write


def answer(status: int, body: bytes = b"", **headers: str) -> Handler:
    """Keyword `content_type` is the header Content-Type."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    told = {"Content-Length": str(len(body)), "Connection": "close", **names}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return raw(f"HTTP/1.1 {status} Word\r\n{head}\r\n".encode() + body)


def with_server(test: Callable[[ListServer], Awaitable[None]]) -> Callable[[], None]:
    """As a test without arguments: pytest knows no coroutines."""

    def run() -> None:
        async def live() -> None:
            async with ListServer() as server, asyncio.timeout(30):
                await test(server)

        asyncio.run(live())

    return run
