"""Sources of the monitor: lines on standard input, files that grow, are rotated or cut, and feeds.

A source reads from where a position says and gives the position behind what it read; whoever reads commits both
together. A position is plain values.
"""

import calendar
import hashlib
import html
import io
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from hf_efficient.errors import ConfigError, MissingDependencyError, RequestError

logger = logging.getLogger(__name__)

LONGEST_LINE = 1_000_000
"""Bytes; longer lines are refused."""

LONGEST_TEXT = 20_000
LONGEST_FEED = 20_000_000
_SHOWN = 200
_HEAD = 256
_LATEST = 4102444800.0  # the year 2100: beyond it, times are in other units than seconds


@dataclass(frozen=True)
class Item:
    """A message of a stream.

    Attributes:
        time: seconds since 1970.
        id: what tells it from others of its source; None where it has none.
        topic: as the source tells it; None leaves that to the monitor.
    """

    text: str
    time: float
    id: str | None = None
    topic: str | None = None


@dataclass(frozen=True)
class Refused:
    """What could not be read as an item: the start of the line, and why."""

    line: str
    reason: str


@dataclass
class Chunk:
    """What a source gave.

    Attributes:
        position: of the source behind it.
        ended: there will be nothing more.
    """

    position: Mapping[str, Any]
    items: list[Item] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    ended: bool = False

    def add(self, line: bytes) -> None:
        """What ``line`` holds; an empty one holds nothing."""
        if not line.strip():
            return
        try:
            if len(line) > LONGEST_LINE:
                raise RequestError(f"the line is longer than {LONGEST_LINE} bytes")
            self.items.append(read_line(line))
        except RequestError as error:
            self.refused.append(Refused(line[:_SHOWN].decode("utf-8", "replace"), str(error)))

    def __len__(self) -> int:
        return len(self.items) + len(self.refused)


class Source(Protocol):
    """Where items come from."""

    name: str

    def read(self, position: Mapping[str, Any], most: int) -> Chunk:
        """Up to ``most`` items behind ``position``; an empty chunk where there are none at the moment."""


def read_line(line: bytes) -> Item:
    """The item of a line of JSON: ``{"text": ..., "time": ..., "id": ..., "topic": ...}``, all but the text optional.

    Raises:
        RequestError: it holds none.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError('not a line of JSON; write {"text": "..."} on each line') from None
    if not isinstance(found, dict):
        raise RequestError(f'{type(found).__name__} instead of an object; write {{"text": "..."}} on each line')
    text, topic, id = found.get("text"), found.get("topic"), found.get("id")
    if not isinstance(text, str):
        raise RequestError("'text' is missing or no text")
    if topic is not None and not isinstance(topic, str):
        raise RequestError(f"'topic' must be text, got {type(topic).__name__}")
    if id is not None and not isinstance(id, str | int):
        raise RequestError(f"'id' must be text or a whole number, got {type(id).__name__}")
    return make_item(text, found.get("time"), None if id is None else str(id), topic)


def make_item(text: str, when: Any = None, id: str | None = None, topic: str | None = None) -> Item:
    """An item of checked values, its time now where ``when`` is None.

    Raises:
        RequestError: no text, too much of it, or no time.
    """
    text = text.encode("utf-8", "replace").decode().replace("\0", " ").strip()  # no database takes these
    if not text:
        raise RequestError("the text is empty")
    if len(text) > LONGEST_TEXT:
        raise RequestError(f"the text has {len(text)} characters; {LONGEST_TEXT} are allowed")
    if topic is not None:
        topic = topic.encode("utf-8", "replace").decode().replace("\0", " ").strip()[:_SHOWN] or None
    return Item(text, time.time() if when is None else read_time(when), id, topic)


def read_time(when: Any) -> float:
    """Seconds since 1970 of a number of them or of an ISO date; without a time zone it is UTC.

    Raises:
        RequestError: neither.
    """
    if isinstance(when, int | float) and not isinstance(when, bool):
        if math.isfinite(when) and 0 <= when < _LATEST:
            return float(when)
    elif isinstance(when, str):
        try:
            found = datetime.fromisoformat(when.strip())
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass
    shown = repr(when)[:_SHOWN]
    raise RequestError(f"no time: {shown}; give seconds since 1970 or an ISO date such as 2026-03-01T09:30:00+00:00")


class Lines:
    """Lines that are piped in. What was read and not committed is gone with the process: give items an ``id``, and
    pipe them in again after a crash. Those that were counted are not counted twice."""

    def __init__(self, handle: IO[bytes], name: str = "stdin", patience_s: float = 0.5):
        self.name, self.patience_s = name, patience_s
        self._lines: queue.Queue[bytes] = queue.Queue(10_000)
        self._filler = threading.Thread(target=self._fill, args=(handle,), daemon=True)
        self._started = self._ended = False

    def _fill(self, handle: IO[bytes]) -> None:
        try:
            while line := _next_line(handle)[0]:
                self._lines.put(line)
        finally:
            self._lines.put(b"")

    def read(self, position: Mapping[str, Any], most: int) -> Chunk:
        chunk = Chunk(position)
        if not self._started:
            self._started = True
            self._filler.start()
        while len(chunk) < most and not self._ended:
            try:  # wait for the first only
                line = self._lines.get_nowait() if len(chunk) else self._lines.get(timeout=self.patience_s)
            except queue.Empty:
                break
            self._ended = not line
            chunk.add(line)
        chunk.ended = self._ended
        return chunk


def _next_line(handle: IO[bytes]) -> tuple[bytes, bool]:
    """The next line, and whether it has an end; of one that is too long, as much as shows that."""
    line = rest = handle.readline(LONGEST_LINE + 2)
    while rest and not rest.endswith(b"\n"):
        rest = handle.readline(LONGEST_LINE)
    return line, rest.endswith(b"\n")


class Followed:
    """A file that another process writes to, line by line. It may be renamed and begun anew (``news.jsonl.1``, also
    while nobody reads), or be copied and cut to nothing.

    Args:
        path: it need not be there yet.
        whole: the file is complete: its last line counts without a line end, and behind it the source has ended.
    """

    def __init__(self, path: str | Path, whole: bool = False):
        self.path, self.whole = Path(path).absolute(), whole
        self.name = f"file:{self.path}"
        if self.path.is_dir() or (whole and not self.path.is_file()):
            raise ConfigError(f"no file {self.path}; name one with a line of JSON for each item")

    def read(self, position: Mapping[str, Any], most: int) -> Chunk:
        files = self._generations(position)
        if not files:
            return Chunk(position, ended=self.whole)
        (file, offset), *later = files
        chunk = Chunk(position)
        with file.open("rb") as handle:
            handle.seek(offset)
            while len(chunk) < most and not chunk.ended:
                line, has_end = _next_line(handle)
                chunk.ended = not line or not (has_end or later or self.whole)  # its writer is not done with it
                if not chunk.ended:
                    chunk.add(line)
                    offset = handle.tell()
            chunk.position = _position(handle, offset)
        if chunk.ended and later:
            with later[0][0].open("rb") as handle:
                chunk.position = _position(handle, 0)
        chunk.ended = chunk.ended and self.whole and not later
        return chunk

    def _generations(self, position: Mapping[str, Any]) -> list[tuple[Path, int]]:
        """The files to read, oldest first, each with where to begin; one that is empty still waits."""
        current = [self.path] if self.path.is_file() else []
        if not position:
            return [(file, 0) for file in current]
        if current and _continues(self.path, position) and _number(self.path) == position["file"]:
            return [(self.path, position["offset"])]
        pattern = re.compile(re.escape(self.path.name) + r"[.-].+")
        others = self.path.parent.iterdir() if self.path.parent.is_dir() else []
        found = [file for file in others if pattern.fullmatch(file.name) and file.is_file()]
        same = [file for file in [*current, *found] if _continues(file, position)]
        same.sort(key=lambda file: _number(file) != position["file"])
        if not same:
            if current:
                logger.warning("%s was cut or replaced: what was written to it last and not read is lost", self.path)
            return [(file, 0) for file in current]
        if same[0] == self.path:
            return [(self.path, position["offset"])]
        age = {file: file.stat().st_mtime_ns for file in found}
        later = sorted((file for file in found if age[file] > age[same[0]]), key=age.__getitem__)
        return [(same[0], position["offset"]), *((file, 0) for file in [*later, *current] if file.stat().st_size)]


def _position(handle: IO[bytes], offset: int) -> dict[str, Any]:
    """Where reading goes on, and what tells the file from others of its name: its number and how it begins."""
    handle.seek(0)
    head = handle.read(_HEAD)
    told = {"offset": offset, "file": os.fstat(handle.fileno()).st_ino}
    return {**told, "head": hashlib.sha256(head).hexdigest(), "head_bytes": len(head)}


def _continues(file: Path, position: Mapping[str, Any]) -> bool:
    """Whether ``file`` begins as the one of ``position`` did, and is as long."""
    with file.open("rb") as handle:
        head = handle.read(position["head_bytes"])
        same = hashlib.sha256(head).hexdigest() == position["head"]
        return same and os.fstat(handle.fileno()).st_size >= position["offset"]


def _number(file: Path) -> int:
    return file.stat().st_ino


class Feed:
    """An RSS or Atom feed, asked again and again.

    Args:
        where: a URL or a file.
        seconds: from one request to the next.
        once: ask it a single time.
        client: an `httpx.Client`; None makes one.
    """

    def __init__(self, where: str, seconds: float = 300, once: bool = False, client: Any = None):
        self.where, self.seconds, self.once, self.client = where, seconds, once, client
        self.is_url = where.partition("://")[0].lower() in ("http", "https")
        self.name = f"feed:{where if self.is_url else Path(where).absolute()}"
        if not self.is_url and not Path(where).is_file():
            raise ConfigError(f"no feed at '{where}'; give a URL that begins with https:// or http://, or a file")
        _feedparser()
        self._waiting: list[Item] = []
        self._seen: set[str] = set()
        self._behind: Mapping[str, Any] = {}
        self._next = 0.0

    def read(self, position: Mapping[str, Any], most: int) -> Chunk:
        chunk = Chunk(position)
        if not self._waiting and time.monotonic() >= self._next:
            self._next = math.inf if self.once else time.monotonic() + self.seconds
            self._behind = position
            try:
                self._ask(position, chunk)
            except (OSError, RequestError) as error:  # of the network or the file: the next time may do better
                logger.warning("%s: %s; asked again in %.0f s", self.name, error, self.seconds)
        chunk.items, self._waiting = self._waiting[:most], self._waiting[most:]
        if not self._waiting:
            chunk.position, chunk.ended = self._behind, self.once
        return chunk

    def _ask(self, position: Mapping[str, Any], chunk: Chunk) -> None:
        content, behind = self._fetch(position) if self.is_url else (Path(self.where).read_bytes(), position)
        if content is None:
            return
        found = _feedparser().parse(io.BytesIO(content))
        if found.bozo and not found.entries:
            raise RequestError("neither RSS nor Atom")
        for entry in reversed(found.entries):  # newest come first
            title = _plain(entry.get("title", ""))
            when = entry.get("published_parsed") or entry.get("updated_parsed")
            id = entry.get("id") or entry.get("link") or title
            if id in self._seen:
                continue
            self._seen.add(id)
            try:
                self._waiting.append(make_item(title, None if when is None else max(0, calendar.timegm(when)), id))
            except RequestError as error:
                chunk.refused.append(Refused(str(id)[:_SHOWN], str(error)))
        self._behind = behind

    def _fetch(self, position: Mapping[str, Any]) -> tuple[bytes | None, Mapping[str, Any]]:
        """What is new at the URL, None for nothing, and the position behind it."""
        httpx = _httpx()
        self.client = self.client or httpx.Client(timeout=30, follow_redirects=True)
        asked = {"etag": "If-None-Match", "modified": "If-Modified-Since"}
        headers = {header: position[name] for name, header in asked.items() if position.get(name)}
        content = b""
        try:
            with self.client.stream("GET", self.where, headers=headers) as response:
                if response.status_code == 304:
                    return None, position
                response.raise_for_status()
                for block in response.iter_bytes():
                    content += block
                    if len(content) > LONGEST_FEED:
                        raise RequestError(f"more than {LONGEST_FEED // 1_000_000} MB")
        except httpx.HTTPError as error:
            raise RequestError(f"{type(error).__name__}: {error}") from None
        told = {"etag": response.headers.get("etag"), "modified": response.headers.get("last-modified")}
        return content, told


def _plain(title: str) -> str:
    """``title`` without markup."""
    return html.unescape(re.sub(r"<[^<>]*>", " ", title)) if "<" in title else html.unescape(title)


def _feedparser() -> Any:
    try:
        import feedparser
    except ImportError as error:
        raise MissingDependencyError("reading feeds", "feedparser", "apps") from error
    return feedparser


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError("reading feeds by URL", "httpx", "apps") from error
    return httpx
