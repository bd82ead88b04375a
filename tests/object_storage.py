"""Object storage to test with: moto's server, and a proxy before it that counts requests and cuts them."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Final, Literal

HOST: Final = "127.0.0.1"
_numbers = count()

Moment = Literal["before", "during", "after", "held"]
"""Of a request that is cut: nothing of it arrives, or half of its body, or all of it, unanswered; one that is
held is answered, but later."""


@dataclass
class Server:
    """A server of object storage, or what stands before one."""

    port: int
    host: str = HOST

    def environment(self) -> dict[str, str]:
        """What leads obstore to it."""
        return {
            "AWS_ENDPOINT": f"http://{self.host}:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def new_store(self) -> str:
        """URL of a place in a bucket of its own."""
        bucket = f"bucket-{next(_numbers)}"
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.request("PUT", f"/{bucket}")
        assert connection.getresponse().status == 200
        connection.close()
        return f"s3://{bucket}/laion"


@contextmanager
def serving_s3(host: str = HOST) -> Iterator[Server]:
    """Moto's server, in a process of its own."""
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stderr is not None
    # It writes a line for each request.
    reader = threading.Thread(target=process.stderr.read)
    try:
        port = next(
            int(found[1]) for line in process.stderr if (found := re.search(rf"http://{host}:(\d+)", line))
        )
        reader.start()
        yield Server(port, host)
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


@dataclass
class Proxy(Server):
    """Passes requests on to a server, one after another.

    Attributes:
        requests: method, path and range of each, as they came.
        cut_at: number of the request that is cut, from 0; none by default.
        moment: at which it is cut.
        on_cut: called instead of answering, or before a request that is held arrives.
    """

    upstream: int = 0
    requests: list[str] = field(default_factory=list)
    cut_at: int | None = None
    moment: Moment = "before"
    on_cut: Callable[[], object] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def counted(self, method: str, path: str, asked: str | None) -> bool:
        """Whether this request is the one to cut."""
        with self.lock:
            self.requests.append(" ".join(filter(None, (method, path.split("?")[0], asked))))
            return len(self.requests) - 1 == self.cut_at


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.proxy.counted(self.command, self.path, self.headers.get("Range")):
            self.pass_on(body)
            return
        if self.proxy.moment == "during":
            self.send_half(body)
        elif self.proxy.moment == "after":
            self.ask(body)
        self.proxy.on_cut()
        if self.proxy.moment == "held":
            self.pass_on(body)
            return
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 (named by http.server)

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(HOST, self.proxy.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return found

    def pass_on(self, body: bytes) -> None:
        status, headers, answered = self.ask(body)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        self.send_header("Content-Length", str(len(answered)) if length is None else length)
        with suppress(ConnectionError):  # whoever asked may have been killed
            self.end_headers()
            self.wfile.write(answered)

    def send_half(self, body: bytes) -> None:
        headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"{self.command} {self.path} HTTP/1.1\r\n{headers}\r\n".encode()
        with socket.create_connection((HOST, self.proxy.upstream)) as connection:
            connection.sendall(head + body[: len(body) // 2])
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                connection.recv(1 << 16)  # whatever it makes of that is done then


@contextmanager
def proxying(server: Server) -> Iterator[Proxy]:
    """A proxy before a server."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer((HOST, 0), handler) as httpd:
        httpd.daemon_threads = True
        handler.proxy = Proxy(httpd.server_port, upstream=server.port)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield handler.proxy
        finally:
            httpd.shutdown()
            thread.join()
