"""A page over HTTP, as little of it as a scrape needs: one GET a connection, on the runtime's own loop."""

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

PATH = "/metrics"
HEAD_BYTES_MAX = 8192
TIMEOUT_S = 5.0
CONNECTIONS_MAX = 8

Page = Callable[[str], tuple[bytes, str]]


class MetricsServer:
    """Serves a listening socket, which it owns, from `start` to `close`. `page` takes what the reader accepts."""

    def __init__(self, listener: socket.socket, page: Page) -> None:
        self._listener = listener
        self._page = page
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self) -> None:
        """Begin to answer."""
        start = asyncio.start_unix_server if self._listener.family == socket.AF_UNIX else asyncio.start_server
        self._server = await start(self._serve, sock=self._listener, limit=HEAD_BYTES_MAX)
        log.info("metrics are told at %s", self._listener.getsockname())

    def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a reader of metrics went away or was too slow: %s", error)
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        """Return the whole answer to a request's head."""
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        target = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return _response("405 Method Not Allowed", b"only GET\n", extra=("Allow: GET",))
        if target != PATH:
            return _response("404 Not Found", f"metrics are at {PATH}\n".encode())
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body, content_type = self._page(fields.get("accept", ""))
        return _response("200 OK", body, content_type)


def _response(
    status: str, body: bytes, content_type: str = "text/plain; charset=utf-8", extra: tuple[str, ...] = ()
) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *extra,
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
