"""A server of one file on this machine, for tests of downloads."""

import http.server
import socket
import threading

NAME = "some/checkpoint.pth"


class FileServer(http.server.ThreadingHTTPServer):
    """Answers every address with the same bytes, and notes what was asked for: (path, range).

    Parameters
    ----------
    data
        The file.
    status, length, etag
        What the answer says; by default the truth.
    cut
        Bytes after which the first answer breaks off.
    ranges
        Whether a part may be asked for.
    stall
        Falls silent at the end instead of closing the connection.
    """

    def __init__(
        self,
        data: bytes,
        status: int = 200,
        length: int | str | None = -1,
        cut: int | None = None,
        etag: str | None = '"v1"',
        ranges: bool = True,
        stall: bool = False,
    ) -> None:
        self.data, self.status, self.length, self.cut = data, status, length, cut
        self.etag, self.ranges, self.stall = etag, ranges, stall
        self.asked: list[tuple[str, str | None]] = []
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = f"http://127.0.0.1:{self.server_port}/"
        self.address = self.root + NAME


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(server.data):
            self.send_response(416)
            self.end_headers()
            return
        partial = bool(wanted) and server.ranges and self.headers.get("If-Range") == server.etag
        start = start if partial else 0
        self.send_response(206 if partial else server.status)
        if server.length is not None:
            self.send_header("Content-Length", str(len(server.data) - start if server.length == -1 else server.length))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        end, server.cut = server.cut, None
        self.wfile.write(server.data[start:end])
        if server.stall:
            self.wfile.flush()
            server.released.wait(20)

    def log_message(self, *_: object) -> None:
        pass


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
