"""What the hub answers: one function for each request that the client makes; `ROUTES` says which."""

import base64
import fnmatch
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.hub.store import MAIN, Commit, Repository, git_oid, plain

if TYPE_CHECKING:
    from tests.hub.server import Handler as Ask

LARGE = ("*.safetensors", "*.bin", "*.png", "*.onnx", "*.onnx.data", "*.xml", "*.parquet")
SIGNATURE = "signed"


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def whoami(ask: "Ask") -> None:
    if ask.user is None:
        return ask.refuse(401, "Invalid username or password.")
    role = "read" if ask.token in ask.hub.readers else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return ask.reply({"type": "user", "name": ask.user, "orgs": [], "auth": auth})


def validate_yaml(ask: "Ask") -> None:
    block = json.loads(ask.body)["content"].split("---\n")[1]
    try:
        wrong = "" if yaml.safe_load(block) else "empty or missing yaml metadata"
    except yaml.YAMLError as error:
        wrong = str(error)
    ask.reply({"errors": [{"message": wrong}] if wrong else [], "warnings": []}, 400 if wrong else 200)


def create(ask: "Ask") -> None:
    asked = json.loads(ask.body)
    kind = f"{asked.get('type') or 'model'}s"
    name = f"{asked.get('organization') or ask.user}/{asked['name']}"
    if not _may_write(ask, name):
        return None
    there = ask.hub.store.repository(kind, name)
    if there is not None:
        return ask.reply({"error": "You already created this repository", **plain(there, ask.hub.url)}, 409)
    private = asked.get("private") or asked.get("visibility") == "private"
    return ask.reply(plain(ask.hub.store.create(kind, name, bool(private)), ask.hub.url))


def delete(ask: "Ask") -> None:
    asked = json.loads(ask.body)
    kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or ask.user}/{asked['name']}"
    if _writable(ask, kind, name):
        ask.hub.store.delete(kind, name)
        ask.reply({})


def preupload(ask: "Ask", kind: str, repo: str, revision: str) -> None:
    if found := _writable(ask, kind, repo):
        commit = found.at(revision)
        known = commit.files if commit else {}
        ask.reply({"files": [_upload_mode(ask, each["path"], known) for each in json.loads(ask.body)["files"]]})


def _upload_mode(ask: "Ask", path: str, known: dict[str, str]) -> dict[str, Any]:
    oid = {}
    if path in known:
        oid = {"oid": known[path] if is_large(path) else git_oid(ask.hub.store.get(known[path]))}
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, **oid}


def lfs_batch(ask: "Ask", repo: str, kind: str | None = None) -> None:
    if _writable(ask, kind or "models", repo):
        prefix = f"{kind}/{repo}" if kind else repo
        objects = [_upload_actions(ask, prefix, item) for item in json.loads(ask.body)["objects"]]
        ask.reply({"transfer": "basic", "objects": objects})


def _upload_actions(ask: "Ask", repo: str, item: dict[str, Any]) -> dict[str, Any]:
    if ask.hub.store.has(item["oid"]):
        return item
    target = f"{ask.hub.url}/lfs/{item['oid']}?size={item['size']}&by={SIGNATURE}"
    verify = {"href": f"{ask.hub.url}/{repo}.git/info/lfs/verify", "header": {}}
    return {**item, "actions": {"upload": {"href": target, "header": {}}, "verify": verify}}


def lfs_put(ask: "Ask", oid: str) -> None:
    asked = parse_qs(urlsplit(ask.path).query)
    if asked.get("by") != [SIGNATURE]:
        return ask.refuse(403, "not signed")
    if len(ask.body) != int(asked["size"][0]) or hashlib.sha256(ask.body).hexdigest() != oid:
        return ask.refuse(400, "size or hash differs")
    ask.hub.store.put(ask.body)
    return ask.reply({})


def lfs_verify(ask: "Ask", repo: str, kind: str | None = None) -> None:
    asked = json.loads(ask.body)
    whole = ask.hub.store.has(asked["oid"]) and ask.hub.store.size(asked["oid"]) == asked["size"]
    return ask.reply({}) if whole else ask.refuse(404, "not uploaded")


def commit(ask: "Ask", kind: str, repo: str, revision: str) -> None:
    found = _writable(ask, kind, repo)
    if found is None:
        return None
    parent = found.at(revision)
    if parent is None:
        return ask.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    head, *operations = [json.loads(line) for line in ask.body.splitlines() if line.strip()]
    stale = head["value"].get("parentCommit")
    if stale and not parent.oid.startswith(stale):
        return ask.refuse(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, bytes | str | None] = {}
    for operation in operations:
        kind_, value = operation["key"], operation["value"]
        if kind_ == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif kind_ == "lfsFile":
            if not ask.hub.store.has(value["oid"]):
                return ask.refuse(400, f"{value['path']} was not uploaded")
            changes[value["path"]] = value["oid"]
        elif kind_ == "deletedFile":
            changes[value["path"]] = None
        elif kind_ == "deletedFolder":
            inside = value["path"].rstrip("/") + "/"
            changes.update({path: None for path in parent.files if path.startswith(inside)})
        else:
            return ask.refuse(400, f"this hub does not know {kind_}")
    return _committed(ask, found, revision, head["value"]["summary"], changes, parent)


def _committed(
    ask: "Ask", found: Repository, revision: str, message: str, changes: dict[str, bytes | str | None], parent: Commit
) -> None:
    told = {}
    url = plain(found, ask.hub.url)["url"]
    if ask.query.get("create_pr") == ["1"]:
        number = 1 + sum(ref.startswith("refs/pr/") for ref in found.refs)
        revision = f"refs/pr/{number}"
        told = {"pullRequestUrl": f"{url}/discussions/{number}"}
    made = ask.hub.store.commit(found, revision, message, changes, parent)
    ask.reply({"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", **told})


def info(ask: "Ask", kind: str, repo: str, revision: str | None = None) -> None:
    at = _readable(ask, kind, repo, revision or MAIN)
    if at is None:
        return
    found, commit_ = at
    card = ask.hub.store.get(commit_.files["README.md"]).decode() if "README.md" in commit_.files else ""
    parts = card.split("---\n")
    data = yaml.safe_load(parts[1]) or {} if len(parts) > 2 else {}
    known = {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
    siblings = [{"rfilename": path} for path in sorted(commit_.files)]
    told = {"id": repo, "sha": commit_.oid, "private": found.private, "tags": data.get("tags", []), "cardData": data}
    ask.reply({**told, **known, "siblings": siblings, "author": found.owner, "downloads": 0, "disabled": False})


def tree(ask: "Ask", kind: str, repo: str, revision: str, folder: str | None = None) -> None:
    at = _readable(ask, kind, repo, revision)
    if at is None:
        return None
    inside = f"{folder}/" if folder else ""
    files = {path: digest for path, digest in sorted(at[1].files.items()) if path.startswith(inside)}
    if folder and not files:
        return ask.refuse(404, f"no {folder}", "EntryNotFound", X_Repo_Commit=at[1].oid)
    entries = [_entry(ask, path, digest) for path, digest in files.items()]
    if ask.query.get("recursive") not in (["true"], ["True"], ["1"]):
        folders = sorted(
            {inside + path.removeprefix(inside).split("/")[0] for path in files if "/" in path[len(inside) :]}
        )
        entries = [entry for entry in entries if "/" not in entry["path"][len(inside) :]]
        entries += [{"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0} for path in folders]
    return ask.reply(entries)


def paths_info(ask: "Ask", kind: str, repo: str, revision: str) -> None:
    if at := _readable(ask, kind, repo, revision):
        asked = parse_qs(ask.body.decode()).get("paths", []) if not ask.body.startswith(b"{") else None
        wanted = json.loads(ask.body)["paths"] if asked is None else asked
        ask.reply([_entry(ask, path, at[1].files[path]) for path in wanted if path in at[1].files])


def _entry(ask: "Ask", path: str, digest: str) -> dict[str, Any]:
    size = ask.hub.store.size(digest)
    entry = {"type": "file", "path": path, "size": size}
    if is_large(path):
        return {**entry, "oid": git_oid(digest.encode()), "lfs": {"oid": digest, "size": size, "pointerSize": 134}}
    return {**entry, "oid": git_oid(ask.hub.store.get(digest))}


def refs(ask: "Ask", kind: str, repo: str) -> None:
    if at := _readable(ask, kind, repo, MAIN):
        told: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, oid in at[0].refs.items():
            is_request = ref.startswith("refs/pr/")
            entry = {"name": ref, "ref": ref if is_request else f"refs/heads/{ref}", "targetCommit": oid}
            told["pullRequests" if is_request else "branches"].append(entry)
        told["tags"] = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": o} for t, o in at[0].tags.items()]
        ask.reply(told)


def commits(ask: "Ask", kind: str, repo: str, revision: str) -> None:
    if at := _readable(ask, kind, repo, revision):
        ask.reply(
            [
                {
                    "id": each.oid,
                    "title": each.message,
                    "message": "",
                    "authors": [{"user": at[0].owner}],
                    "date": datetime.fromtimestamp(each.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                }
                for each in at[0].history(revision)
            ]
        )


def branch(ask: "Ask", kind: str, repo: str, name: str) -> None:
    if found := _writable(ask, kind, repo):
        start = json.loads(ask.body or b"{}").get("startingPoint") or MAIN
        _point(ask, found, found.refs, name, start)


def tag(ask: "Ask", kind: str, repo: str, name: str) -> None:
    """``name`` is the revision when a tag is made, and the tag's when it goes."""
    if found := _writable(ask, kind, repo):
        wanted = name if ask.command == "DELETE" else json.loads(ask.body)["tag"]
        _point(ask, found, found.tags, wanted, name)


def _point(ask: "Ask", found: Repository, refs: dict[str, str], name: str, start: str) -> None:
    """Let ``name`` in ``refs`` point to the revision ``start``, or go, as the request wants it."""
    if ask.command == "DELETE":
        gone = name != MAIN and refs.pop(name, None)
        ask.hub.store.save(found)
        return ask.reply({}) if gone else ask.refuse(404, f"no {name}", "RevisionNotFound")
    at = found.at(start)
    if name in refs:
        return ask.refuse(409, f"Reference already exists: {name}")
    if at is None:
        return ask.refuse(404, "Invalid rev id", "RevisionNotFound")
    refs[name] = at.oid
    ask.hub.store.save(found)
    return ask.reply({})


def resolve(ask: "Ask", repo: str, revision: str, path: str, kind: str | None = None) -> None:
    at = _readable(ask, kind or "models", repo, revision)
    if at is None:
        return None
    found = at[1]
    if path not in found.files:
        return ask.refuse(404, f"no {path}", "EntryNotFound", X_Repo_Commit=found.oid)
    digest = found.files[path]
    content = ask.hub.store.get(digest)
    etag = digest if is_large(path) else git_oid(content)
    linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))} if is_large(path) else {}
    headers = {"X-Repo-Commit": found.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes", **linked}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("Range", ""))
    if wanted is None:
        return ask.send(content, 200, headers)
    first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
    if first >= len(content):
        return ask.send(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    part = content[first : last + 1]
    return ask.send(part, 206, {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})


def _may_write(ask: "Ask", repo: str) -> bool:
    """Whether the request may write there; refuses it otherwise."""
    if ask.user is None:
        ask.refuse(401, "Invalid username or password.")
    elif ask.token in ask.hub.readers:
        ask.refuse(403, "this token may only read")
    elif ask.user != repo.split("/")[0]:
        ask.refuse(403, f"no write access to {repo}")
    else:
        return True
    return False


def _writable(ask: "Ask", kind: str, repo: str) -> Repository | None:
    """The repository; where there is none, or it may not be written, the request is refused."""
    if not _may_write(ask, repo):
        return None
    found = ask.hub.store.repository(kind, repo)
    if found is None:
        ask.refuse(404, "Repository not found", "RepoNotFound")
    return found


def _readable(ask: "Ask", kind: str, repo: str, revision: str) -> tuple[Repository, Commit] | None:
    """Repository and commit; where there are none, or they may not be seen, the request is refused."""
    found = ask.hub.store.repository(kind, repo)
    if found is None or (found.private and ask.user != found.owner):
        ask.refuse(401 if ask.user is None else 404, "Repository not found", "RepoNotFound")
        return None
    at = found.at(revision)
    if at is None:
        ask.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return None
    return found, at


_KIND = "(?P<kind>models|datasets|spaces)"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = "(?P<revision>[^/]+)"
_OTHER = "((?P<kind>datasets|spaces)/)?"
ROUTES = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/validate-yaml", validate_yaml),
    (("POST",), "/api/repos/create", create),
    (("DELETE",), "/api/repos/delete", delete),
    (("POST",), f"/api/{_KIND}/{_REPO}/preupload/{_REVISION}", preupload),
    (("POST",), f"/api/{_KIND}/{_REPO}/commit/{_REVISION}", commit),
    (("POST", "DELETE"), f"/api/{_KIND}/{_REPO}/branch/(?P<name>.+)", branch),
    (("POST", "DELETE"), f"/api/{_KIND}/{_REPO}/tag/(?P<name>.+)", tag),
    (("POST",), rf"/{_OTHER}{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
    (("POST",), rf"/{_OTHER}{_REPO}\.git/info/lfs/verify", lfs_verify),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    (("GET",), f"/api/{_KIND}/{_REPO}", info),
    (("GET",), f"/api/{_KIND}/{_REPO}/revision/{_REVISION}", info),
    (("GET",), f"/api/{_KIND}/{_REPO}/tree/{_REVISION}(/(?P<folder>.+))?", tree),
    (("POST",), f"/api/{_KIND}/{_REPO}/paths-info/{_REVISION}", paths_info),
    (("GET",), f"/api/{_KIND}/{_REPO}/refs", refs),
    (("GET",), f"/api/{_KIND}/{_REPO}/commits/{_REVISION}", commits),
    (("GET", "HEAD"), f"/{_OTHER}{_REPO}/resolve/{_REVISION}/(?P<path>.+)", resolve),
]
"""Methods, pattern of the path, function."""
