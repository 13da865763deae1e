"""A model hub on loopback that speaks what the client of `huggingface_hub` calls.

Bearer tokens belong to users; private repositories are seen by their owner alone; uploads of large files are checked by
size and hash before they count; a commit that names one that did not arrive, has no right to write, or a stale parent,
is refused. `Fault`s break what a test wants broken.

``python -m tests.hub.server FOLDER PORT [--dies] TOKEN=USER ...`` serves as a process of its own; with --dies that is
killed when it has received a part of a large file.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import api
from tests.hub.store import Commit, Repository, Store

BLOCK = 1 << 16


@dataclass
class Fault:
    """What goes wrong with requests whose path contains ``part``.

    Attributes:
        method: of the requests; empty: any.
        status: they get this one.
        cut_after: of what is sent, or of what is received where it is a PUT, only so many bytes go through.
        delay: seconds before an answer.
        drop: the request is carried out, and its answer lost.
        kills: in place of hanging up, the whole process goes.
        times: how often; None: always.
    """

    part: str
    method: str = ""
    status: int | None = None
    cut_after: int | None = None
    delay: float = 0.0
    drop: bool = False
    kills: bool = False
    times: int | None = 1


class Hub:
    """The server; use as a context manager.

    Args:
        tokens: token -> user.
        folder: where repositories lie; None: a temporary one.
        readers: tokens that may not write.
    """

    def __init__(
        self, tokens: dict[str, str], folder: Path | None = None, port: int = 0, readers: tuple[str, ...] = ()
    ):
        self.tokens, self.readers = tokens, readers
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.store = Store(folder if folder is not None else Path(self._temporary.name))  # type: ignore[union-attr]
        self.log: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Path -> content."""
        return {path: self.store.get(digest) for path, digest in self.commit(name, revision, kind).files.items()}

    def commit(self, name: str, revision: str = "main", kind: str = "models") -> Commit:
        found = self.repository(name, kind).at(revision)
        assert found is not None
        return found

    def repository(self, name: str, kind: str = "models") -> Repository:
        found = self.store.repository(kind, name)
        assert found is not None
        return found

    def commits(self, name: str, revision: str = "main") -> list[tuple[str, set[str]]]:
        """Message and paths of each commit, oldest first."""
        history = reversed(self.repository(name).history(revision))
        return [(commit.message, set(commit.files)) for commit in history]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.part in path and fault.method in ("", method) and fault.times != 0:
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        if self._temporary is not None:
            self._temporary.cleanup()


class Handler(BaseHTTPRequestHandler):
    """One request: the function of `api.ROUTES` whose pattern the path matches."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def do_DELETE(self) -> None:
        self.route("DELETE")

    def log_message(self, *args: Any) -> None:
        """Nothing on the console."""

    def route(self, method: str) -> None:
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        with self.hub.lock:
            self.hub.log.append((method, unquote(target.path)))
            self.fault = self.hub.fault(method, unquote(target.path))
        if self.fault and self.fault.delay:
            time.sleep(self.fault.delay)
        body = self.read(self.fault.cut_after if self.fault and method == "PUT" else None)
        if body is None:
            return self.hang_up()
        self.body = body
        if self.fault and self.fault.status:
            return self.refuse(self.fault.status, "as the test wants it")
        with self.hub.lock:
            for verbs, pattern, function in api.ROUTES:
                if method in verbs and (match := re.fullmatch(pattern, target.path)):
                    groups = {name: value and unquote(value) for name, value in match.groupdict().items()}
                    return function(self, **groups)
        return self.refuse(404, f"this hub does not know {method} {target.path}")

    def read(self, most: int | None) -> bytes | None:
        """The request's body; None after ``most`` bytes of it."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length) if most is None or length <= most else None
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if most is not None and sum(map(len, parts)) > most:
                return None
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self) -> None:
        if self.fault and self.fault.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get(self.token)

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.fault and self.fault.drop:
            return self.hang_up()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        most = self.fault.cut_after if self.fault else None
        self.wfile.write(content[:most])
        return self.hang_up() if most is not None and most < len(content) else None

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        content = json.dumps({"error": message}).encode()
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(content, status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **more})


def main(folder: str, port: str, *arguments: str) -> None:
    tokens = dict(pair.split("=") for pair in arguments if not pair.startswith("--"))
    with Hub(tokens, Path(folder), int(port)) as hub:
        hub.faults = [Fault("/lfs/", "PUT", cut_after=1000, kills=True)] if "--dies" in arguments else []
        print(hub.url, flush=True)
        for _ in itertools.count():
            time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
