import functools
import http.server
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hf_efficient import ConfigError
from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps.stream import LONGEST_LINE, Feed, Followed, Lines, make_item, read_line, read_time


def line(number: int) -> str:
    return json.dumps({"text": f"item {number}", "time": number}) + "\n"


def write(path: Path, *numbers: int, mode: str = "a") -> None:
    with path.open(mode) as handle:
        handle.writelines(map(line, numbers))


class Reader:
    """Reads like the monitor; its position survives a restart as JSON does."""

    def __init__(self, path: Path, whole: bool = False):
        self.path, self.whole, self.position = path, whole, "{}"
        self.source = Followed(path, whole)

    def restart(self) -> None:
        self.source = Followed(self.path, self.whole)

    def read(self, most: int = 100) -> list[int]:
        """Numbers of the items, until there are no more for now."""
        found: list[int] = []
        for _ in range(30):
            before = self.position
            chunk = self.source.read(json.loads(self.position), most)
            self.position = json.dumps(chunk.position)
            found += [int(item.text.split()[1]) for item in chunk.items]
            if not len(chunk) and self.position == before:
                return found
        raise AssertionError("no end")


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "news.jsonl")


def test_a_file_that_grows(reader: Reader) -> None:
    assert reader.read() == []
    write(reader.path, 1, 2, 3)
    assert reader.read(most=2) == [1, 2, 3]
    assert reader.read() == []
    with reader.path.open("a") as handle:
        handle.write(line(4) + line(5)[:7])
        handle.flush()
        assert reader.read() == [4]
        handle.write(line(5)[7:])
    assert reader.read() == [5]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("way", ["rename", "copy"])
def test_a_file_that_is_rotated(reader: Reader, way: str, restarts: bool) -> None:
    """With items that were not read yet in the old file, and in the one before it."""
    write(reader.path, *range(5))
    assert reader.read(most=3) == list(range(5))
    for turn in (1, 2):
        write(reader.path, 10 * turn, 10 * turn + 1)
        old = reader.path.with_name(f"news.jsonl.{turn}")
        if way == "rename":
            reader.path.rename(old)
        else:
            shutil.copy(reader.path, old)
            reader.path.write_text("")
        os.utime(old, (turn, turn))
        write(reader.path, 10 * turn + 5)
    if restarts:
        reader.restart()
    assert reader.read(most=1) == [10, 11, 15, 20, 21, 25]
    write(reader.path, 30)
    assert reader.read() == [30]


def test_a_file_that_was_rotated_before_its_first_line_came(reader: Reader) -> None:
    reader.path.touch()
    assert reader.read() == []
    write(reader.path, 1)
    reader.path.rename(reader.path.with_name("news.jsonl.1"))
    write(reader.path, 2)
    assert reader.read() == [1, 2]


def test_a_file_that_was_cut(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    write(reader.path, 1, 2, 3)
    assert reader.read() == [1, 2, 3]
    write(reader.path, 4, mode="w")
    assert reader.read() == [4]
    assert "was cut or replaced" in caplog.text
    write(reader.path, *range(50, 60), mode="w")  # longer than before: only how it begins tells
    assert reader.read() == list(range(50, 60))


def test_a_whole_file_ends_with_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(line(1) + line(2).rstrip())
    chunk = Followed(path, whole=True).read({}, 100)
    assert [item.text for item in chunk.items] == ["item 1", "item 2"]
    assert chunk.ended
    assert not Followed(path, whole=True).read(chunk.position, 100).items
    with pytest.raises(ConfigError, match="no file"):
        Followed(tmp_path / "none.jsonl", whole=True)


def test_lines_that_hold_no_item_are_told_and_left_out(reader: Reader) -> None:
    wrong = [b"nothing", b"[1]", b'{"text": 3}', b'{"text": " "}', b'{"text": "x", "time": "soon"}', b"\xff\x00"]
    wrong += [b'{"text": "x", "id": [1]}', b'{"text": "x", "topic": 1}', b'{"text": "x", "time": NaN}', b"[" * 100_000]
    wrong.append(b'{"text": "' + b"x" * (2 * LONGEST_LINE + 5) + b'"}')
    reader.path.write_bytes(b"\n\n".join([*wrong, line(1).encode()]))
    chunk = reader.source.read({}, 100)
    assert [item.text for item in chunk.items] == ["item 1"][: len(chunk.items)]
    assert len(chunk.refused) == len(wrong)
    assert all(len(each.line) <= 200 and each.reason for each in chunk.refused)
    assert "longer than" in chunk.refused[-1].reason


def test_lines_that_are_piped_in() -> None:
    text = "".join(map(line, range(5))).encode() + b"wrong\n" + line(5).rstrip().encode()
    source = Lines(io.BytesIO(text), patience_s=5)
    found, refused = [], 0
    for _ in range(20):
        chunk = source.read({}, 2)
        found += [item.text for item in chunk.items]
        refused += len(chunk.refused)
        if chunk.ended:
            break
    assert found == [f"item {number}" for number in range(6)]
    assert refused == 1


def test_nothing_piped_in_yet_is_no_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as handle, os.fdopen(writing, "wb", buffering=0) as other:
        source = Lines(handle, patience_s=0.01)
        assert not source.read({}, 10).ended
        other.write(line(1).encode())
        source.patience_s = 5
        assert [item.text for item in source.read({}, 10).items] == ["item 1"]
        other.close()
        assert source.read({}, 10).ended


def test_times() -> None:
    assert read_time(12.5) == 12.5
    assert read_time("1970-01-02") == 86400
    assert read_time("1970-01-01T01:00:00+01:00") == 0
    assert read_time("1970-01-01T00:00:01Z") == 1
    for wrong in ("", "soon", True, -1, float("inf"), 1.7e12, [1], "9999-99-99"):
        with pytest.raises(RequestError, match="ISO date"):
            read_time(wrong)


def test_what_an_item_holds() -> None:
    item = read_line(b'{"text": " a\\u0000b ", "time": 5, "id": 7, "topic": "east", "more": 1}')
    assert (item.text, item.time, item.id, item.topic) == ("a b", 5, "7", "east")
    assert make_item("\ud800").text == "?"
    assert make_item("x").time > 1.7e9
    with pytest.raises(RequestError, match="20000 are allowed"):
        make_item("x" * 20_001)


RSS = """<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>{}</channel></rss>"""
ENTRY = """<item><title>{title}</title><guid>g{number}</guid>
<pubDate>Thu, 01 Jan 1970 00:00:{number:02} GMT</pubDate></item>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>a1</id>
<title type="html">&lt;b&gt;Up&lt;/b&gt; 3 %</title>
<updated>1970-01-01T00:00:09Z</updated></entry></feed>"""


def rss(*numbers: int, title: str = "Profit &amp; loss {}") -> bytes:
    entries = (ENTRY.format(number=number, title=title.format(number)) for number in numbers)
    return RSS.format("".join(entries)).encode()


def test_a_feed_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "feed.xml"
    path.write_bytes(rss(3, 2, 1))
    source = Feed(str(path), seconds=0)
    chunk = source.read({}, 2)  # oldest first
    assert [(item.text, item.time, item.id) for item in chunk.items] == [
        ("Profit & loss 1", 1, "g1"),
        ("Profit & loss 2", 2, "g2"),
    ]
    assert [item.id for item in source.read({}, 2).items] == ["g3"]
    path.write_bytes(rss(4, 3))
    assert [item.id for item in source.read({}, 2).items] == ["g4"]
    path.write_text(ATOM)
    assert [(item.text, item.id) for item in source.read({}, 5).items] == [("Up  3 %", "a1")]


def test_a_feed_that_is_broken_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "feed.xml"
    path.write_text("not a feed")
    source = Feed(str(path), seconds=0)
    assert not len(source.read({}, 5))
    assert "neither RSS nor Atom" in caplog.text
    path.unlink()
    assert not len(source.read({}, 5))
    path.write_bytes(rss(1) + b"<oops>")
    assert len(source.read({}, 5).items) == 1
    path.write_bytes(rss(2, title=""))
    assert "empty" in source.read({}, 5).refused[0].reason
    with pytest.raises(ConfigError, match="no feed at"):
        Feed(str(tmp_path / "none.xml"))


@pytest.fixture
def site() -> Iterator[tuple[str, list[Any]]]:
    """A web site on loopback with a feed, and what it was asked."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            content = rss(1, 2)
            known = self.headers.get("If-None-Match") == '"v1"'
            self.send_response(304 if known else 500 if len(asked) == 1 else 200)
            self.send_header("ETag", '"v1"')
            self.send_header("Content-Length", "0" if known or len(asked) == 1 else str(len(content)))
            self.end_headers()
            if not known and len(asked) > 1:
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/feed", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_feed_at_a_url(site: tuple[str, list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    url, asked = site
    with httpx.Client(trust_env=False) as client:
        source = Feed(url, seconds=0, client=client)
        assert not len(source.read({}, 5))
        assert "500" in caplog.text
        chunk = source.read({}, 1)
        assert len(chunk.items) == 1
        assert not chunk.position  # a restart here asks for all of it again
        chunk = source.read(chunk.position, 1)
        assert chunk.position["etag"] == '"v1"'
        again = Feed(url, seconds=0, once=True, client=client)
        last = again.read(chunk.position, 5)
    assert asked[-1]["If-None-Match"] == '"v1"'
    assert last.ended
    assert not len(last)
    assert last.position == chunk.position
