"""A model hub on loopback that speaks as much of the Hub's protocol as one push and one download need.

Repositories are in memory: `hub.files("user/name")` is what arrived, `hub.log` who asked for what. Tokens are bearer
tokens of one user each; uploads of large files are checked by size and hash, and a commit that names one which did not
arrive is refused, as is a commit without write access.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = ("*.safetensors", "*.bin", "*.png", "*.onnx")
SIGNATURE = "signed"


@dataclass
class Repository:
    """Commits, newest last: (hash, message, path -> content)."""

    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        said = json.dumps([message, len(self.commits), sorted((p, sha256(c)) for p, c in files.items())])
        self.commits.append((hashlib.sha1(said.encode()).hexdigest(), message, files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1][0], self.commits[-1][2]
        return next(((oid, files) for oid, _, files in self.commits if oid == revision), None)


class Hub:
    """The server; use as a context manager."""

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.refuse: tuple[str, int] | None = None
        """Fault: (part of a path, status that requests for it get)."""
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, name: str) -> dict[str, bytes]:
        return dict(self.repositories[name].commits[-1][2])

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request: the method of `ROUTES` whose pattern the path matches."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def log_message(self, *args: Any) -> None:
        """Nothing on the console."""

    def route(self, method: str) -> None:
        self.body = self.read()
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.log.append((method, path))
            if self.hub.refuse and self.hub.refuse[0] in path:
                return self.refuse(self.hub.refuse[1], "as the test wants it")
            for verbs, pattern, name in ROUTES:
                if method in verbs and (match := re.fullmatch(pattern, path)):
                    return getattr(self, name)(**match.groupdict())
        return self.refuse(404, f"this hub does not know {method} {path}")

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def user(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        content = json.dumps({"error": message}).encode()
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(content, status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **more})

    def writer(self, repo: str) -> bool:
        """Whether the request may write; refuses it otherwise."""
        if self.user() is None:
            self.refuse(401, "Invalid username or password.")
        elif self.user() != repo.split("/")[0]:
            self.refuse(403, f"no write access to {repo}")
        elif repo not in self.hub.repositories:
            self.refuse(404, "Repository not found", "RepoNotFound")
        else:
            return True
        return False

    def whoami(self) -> None:
        if self.user() is None:
            return self.refuse(401, "Invalid username or password.")
        return self.reply({"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self) -> None:
        block = json.loads(self.body)["content"].split("---\n")[1]
        found = yaml.safe_load(block)
        self.reply({"errors": [], "warnings": [] if found else [{"message": "empty or missing yaml metadata"}]})

    def create(self) -> None:
        if self.user() is None:
            return self.refuse(401, "Invalid username or password.")
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user()
        if owner != self.user():
            return self.refuse(403, f"no right to create under {owner}")
        name = f"{owner}/{asked['name']}"
        if name in self.hub.repositories:
            return self.reply({"error": "already there", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = Repository()
        self.hub.repositories[name].commit("initial commit", {".gitattributes": b"*.bin filter=lfs\n"})
        return self.reply({"url": f"{self.hub.url}/{name}"})

    def preupload(self, repo: str, revision: str) -> None:
        if self.writer(repo):
            there = self.hub.files(repo)
            files = [self.upload_mode(file["path"], there) for file in json.loads(self.body)["files"]]
            self.reply({"files": files})

    def upload_mode(self, path: str, there: dict[str, bytes]) -> dict[str, Any]:
        large = is_large(path)
        known = {"oid": (sha256 if large else git_oid)(there[path])} if path in there else {}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}

    def batch(self, repo: str) -> None:
        if self.writer(repo):
            objects = [self.upload_actions(repo, item) for item in json.loads(self.body)["objects"]]
            self.reply({"transfer": "basic", "objects": objects})

    def upload_actions(self, repo: str, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.large:
            return item
        target = f"{self.hub.url}/lfs/{item['oid']}?size={item['size']}&by={SIGNATURE}"
        verify = {"href": f"{self.hub.url}/{repo}.git/info/lfs/verify", "header": {}}
        return {**item, "actions": {"upload": {"href": target, "header": {}}, "verify": verify}}

    def put_large(self, oid: str) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if asked["by"] != [SIGNATURE]:
            return self.refuse(403, "not signed")
        if len(self.body) != int(asked["size"][0]) or sha256(self.body) != oid:
            return self.refuse(400, "size or hash differs")
        self.hub.large[oid] = self.body
        return self.reply({})

    def verify(self, repo: str) -> None:
        asked = json.loads(self.body)
        whole = len(self.hub.large.get(asked["oid"], b"")) == asked["size"]
        self.reply({}) if whole else self.refuse(404, "not uploaded")

    def commit(self, repo: str, revision: str) -> None:
        if not self.writer(repo):
            return None
        head, *operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files = self.hub.files(repo)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self.refuse(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                return self.refuse(400, f"this hub does not know {kind}")
        oid = self.hub.repositories[repo].commit(head["value"]["summary"], files)
        return self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files; refuses the request where there are none."""
        if repo not in self.hub.repositories:
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        at = self.hub.repositories[repo].at(revision)
        if at is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return at

    def info(self, repo: str, revision: str | None = None) -> None:
        if at := self.found(repo, revision or "main"):
            card = at[1].get("README.md", b"").decode().split("---\n")
            data = yaml.safe_load(card[1]) if len(card) > 2 else {}
            known = {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
            siblings = [{"rfilename": path} for path in sorted(at[1])]
            told = {"id": repo, "sha": at[0], "private": False, "tags": data.get("tags", []), "siblings": siblings}
            self.reply({**told, **known})

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        if at := self.found(repo, revision):
            inside = f"{folder}/" if folder else ""
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in sorted(at[1].items())
                if path.startswith(inside)
            ]
            self.reply(entries) if entries else self.refuse(404, f"no {folder}", "EntryNotFound", X_Repo_Commit=at[0])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        at = self.found(repo, revision)
        if at is None:
            return None
        oid, files = at
        if path not in files:
            return self.refuse(404, f"no {path}", "EntryNotFound", X_Repo_Commit=oid)
        content = files[path]
        etag = (sha256 if is_large(path) else git_oid)(content)
        return self.send(content, 200, {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "none"})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w.-]+)"
ROUTES = [
    (("GET",), "/api/whoami-v2", "whoami"),
    (("POST",), "/api/validate-yaml", "validate_yaml"),
    (("POST",), "/api/repos/create", "create"),
    (("POST",), f"/api/models/{_REPO}/preupload/{_REVISION}", "preupload"),
    (("POST",), f"/api/models/{_REPO}/commit/{_REVISION}", "commit"),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (("POST",), rf"/{_REPO}\.git/info/lfs/verify", "verify"),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", "put_large"),
    (("GET",), f"/api/models/{_REPO}", "info"),
    (("GET",), f"/api/models/{_REPO}/revision/{_REVISION}", "info"),
    (("GET",), f"/api/models/{_REPO}/tree/{_REVISION}(/(?P<folder>.+))?", "tree"),
    (("GET", "HEAD"), f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
]
"""Methods, pattern of the path, method of `Handler`."""


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    """Hash of a file as git stores it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
