# SPDX-License-Identifier: Apache-2.0
"""What the loopback Hub answers to each request of huggingface_hub 2.4."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import yaml

from .store import GIT_ATTRIBUTES, LFS_BYTES, LFS_SUFFIXES, TYPES, Refusal, Repository, Store


@dataclass
class Reply:
    """A status, a content (bytes, a file, or what JSON can say) and headers."""

    status: int
    content: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Names:
    """Who asks for what: the store, the user, and what the request's path names."""

    store: Store
    user: str
    role: str
    type: str
    id: str
    given: dict[str, str]

    @property
    def repository(self) -> Repository:
        """The repository, if the user may see it."""
        found = self.store.repositories.get((self.type, self.id))
        if found is None or (found.private and not self.owns):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return found

    @property
    def owns(self) -> bool:
        """Whether the repository lies in the user's own namespace."""
        return bool(self.user) and self.id.split("/")[0] == self.user

    def writable(self) -> Repository:
        """The repository, if the user may change it."""
        if not self.user:
            raise Refusal(401, "Invalid username or password.")
        repository = self.repository
        if not self.owns or self.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def readable(self) -> Repository:
        """The repository, if the user may have its contents."""
        repository = self.repository
        if repository.gated and not self.owns:
            raise Refusal(401 if not self.user else 403, f"Access to {self.id} is restricted.", "GatedRepo")
        return repository


def routes_of(store: Store, user: str, role: str, given: dict[str, str]) -> dict[str, Any]:
    """The argument of a route."""
    type_ = {"datasets": "dataset", "spaces": "space"}.get(given.get("type", "models"), "model")
    return {"names": Names(store, user, role, type_, given.get("id", ""), given)}


def whoami(request: Any, names: Names) -> Reply:
    if not names.user:
        raise Refusal(401, "Invalid username or password.")
    token = {"accessToken": {"role": names.role, "displayName": "a test's"}}
    return Reply(200, {"name": names.user, "type": "user", "orgs": [], "auth": token})


def create(request: Any, names: Names) -> Reply:
    body = request.json()
    owner = body.get("organization") or names.user
    if not names.user:
        raise Refusal(401, "Invalid username or password.")
    if names.role != "write" or owner != names.user:
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    type_ = body.get("type") or "model"
    assert type_ in TYPES
    if type_ == "space" and request.server.spaces_cost_money:
        raise Refusal(402, "A paid plan is needed to host this Space.")
    name = f"{owner}/{body['name']}"
    url = {"url": f"{request.server.url}/{'' if type_ == 'model' else type_ + 's/'}{name}"}
    try:
        with names.store.lock:
            names.store.create(type_, name, body.get("visibility") == "private", body.get("sdk"))
    except Refusal as refusal:
        refusal.more = url
        raise
    return Reply(200, url)


def validate_yaml(request: Any, names: Names) -> Reply:
    body = request.json()
    parts = body["content"].split("---\n")
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
        wrong = [] if isinstance(metadata, dict) else ["the metadata is no mapping"]
        if body["repoType"] == "space" and not (isinstance(metadata, dict) and metadata.get("sdk")):
            wrong.append('"sdk" is required')
    except yaml.YAMLError as error:
        wrong = [f"bad indentation or syntax: {type(error).__name__}"]
    errors = [{"message": message} for message in wrong]
    return Reply(400 if errors else 200, {"errors": errors, "warnings": []})


def information(request: Any, names: Names) -> Reply:
    repository = names.repository
    commit = repository.commit_of(names.given.get("revision", "main"))
    return Reply(
        200,
        {
            "_id": "0",
            "id": repository.id,
            "sha": commit["oid"],
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "sdk": repository.sdk,
            "tags": [],
            "siblings": [{"rfilename": path} for path in commit["files"]],
            "downloads": 0,
            "likes": 0,
        },
    )


def entry(path: str, file: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """A file as `tree` and `paths-info` tell it."""
    row: dict[str, Any] = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
    if file["lfs"]:
        row["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
        row["xetHash"] = hashes.get(file["sha256"])
    return row


def tree(request: Any, names: Names) -> Reply:
    """Two entries a page, so that the client's paging is used."""
    files = names.repository.commit_of(names.given["revision"])["files"]
    below = names.given.get("path", "")
    found = sorted(path for path in files if not below or path.startswith(f"{below}/"))
    if below and not found:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    hashes = names.store.xet_hashes()
    if request.query.get("recursive") != ["true"]:
        found = [path for path in found if "/" not in path.removeprefix(f"{below}/")]
    first = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if first + 2 < len(found):
        following = f"{request.server.url}{request.path.split('?')[0]}?recursive=true&cursor={first + 2}"
        headers["Link"] = f'<{following}>; rel="next"'
    return Reply(200, [entry(path, files[path], hashes) for path in found[first : first + 2]], headers)


def paths_info(request: Any, names: Names) -> Reply:
    files = names.repository.commit_of(names.given["revision"])["files"]
    asked = parse_qs(request.body().decode()).get("paths", [])
    hashes = names.store.xet_hashes()
    return Reply(200, [entry(path, files[path], hashes) for path in asked if path in files])


def references(request: Any, names: Names) -> Reply:
    repository = names.repository

    def rows(kind: str, held: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in held.items()]

    return Reply(
        200, {"branches": rows("heads", repository.branches), "tags": rows("tags", repository.tags), "converts": []}
    )


def preupload(request: Any, names: Names) -> Reply:
    repository = names.writable()
    files = repository.commit_of(names.given["revision"])["files"]

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["path"].endswith(LFS_SUFFIXES) or file["size"] >= LFS_BYTES
        held = files.get(file["path"])
        oid = held and held["sha256" if held["lfs"] else "oid"]
        return {
            "path": file["path"],
            "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    return Reply(200, {"files": [mode(file) for file in request.json()["files"]]})


def lfs_batch(request: Any, names: Names) -> Reply:
    names.writable()

    def action(asked: dict[str, Any]) -> dict[str, Any]:
        if names.store.object(asked["oid"]).exists():
            return asked
        put = {"href": f"{request.server.content_url}/upload/{asked['oid']}", "header": {}}
        check = {"href": f"{request.server.url}/uploaded/{asked['oid']}", "header": {}}
        return asked | {"actions": {"upload": put, "verify": check}}

    objects = [action({"oid": row["oid"], "size": row["size"]}) for row in request.json()["objects"]]
    return Reply(200, {"transfer": "basic", "objects": objects})


def lfs_put(request: Any, names: Names) -> Reply:
    names.store.receive(names.given["sha256"], request.unread, request.read)
    return Reply(200)


def lfs_check(request: Any, names: Names) -> Reply:
    return Reply(200 if names.store.object(names.given["sha256"]).exists() else 404, {})


def xet_token(request: Any, names: Names) -> Reply:
    if names.given["right"] == "write":
        names.writable()
    else:
        names.readable()
    expires = int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": names.store.cas,
        "X-Xet-Access-Token": "for-contents-only",
        "X-Xet-Token-Expiration": str(expires),
    }
    told = {"casUrl": names.store.cas, "accessToken": "for-contents-only", "exp": expires}
    return Reply(200, told, headers)


def commit(request: Any, names: Names) -> Reply:
    repository = names.writable()
    branch, store = names.given["revision"], names.store
    header: dict[str, Any] = {}
    added: dict[str, dict[str, Any]] = {}
    deleted = []
    for kind, value in request.commit_lines():
        if kind == "header":
            header = value
        elif kind == "file":
            added[value["path"]] = store.keep(value["content"])
        elif kind == "lfsFile":
            with store.lock:
                store.materialize(value["oid"], value["size"])
            pointer = store.keep(f"oid sha256:{value['oid']}\n".encode())
            added[value["path"]] = {
                "oid": pointer["oid"],
                "sha256": value["oid"],
                "size": store.object(value["oid"]).stat().st_size,
                "lfs": True,
            }
        else:
            deleted.append(value["path"])
    with store.lock:
        made = store.commit(repository, branch, header["summary"], added, deleted, header.get("parentCommit"))
    url = f"{request.server.url}/{repository.id}/commit/{made['oid']}"
    return Reply(200, {"commitOid": made["oid"], "commitUrl": url, "pullRequestUrl": None, "success": True})


def tag(request: Any, names: Names) -> Reply:
    repository, name = names.writable(), request.json()["tag"]
    if name in repository.tags:
        raise Refusal(409, "Tag already exists")
    repository.tags[name] = repository.commit_of(names.given["revision"])["oid"]
    names.store.save()
    return Reply(200, {})


def settings(request: Any, names: Names) -> Reply:
    repository, body = names.writable(), request.json()
    if "visibility" in body:
        repository.private = body["visibility"] == "private"
    repository.gated = body.get("gated", repository.gated)
    names.store.save()
    return Reply(200, {})


def secret(request: Any, names: Names) -> Reply:
    body = request.json()
    names.writable().secrets[body["key"]] = body["value"]
    names.store.save()
    return Reply(200, {})


def resolve(request: Any, names: Names) -> Reply:
    """A small file at once; of a large one where it lies, with what the client must know of it."""
    repository = names.readable()
    commit = repository.commit_of(names.given["revision"])
    headers = {"X-Repo-Commit": commit["oid"]}
    file = commit["files"].get(names.given["path"])
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
    content = names.store.object(file["sha256"])
    if not file["lfs"]:
        return Reply(200, content, headers | {"ETag": f'"{file["oid"]}"'})
    location = f"{request.server.content_url}/content/{file['sha256']}"
    headers |= {
        "X-Linked-Etag": f'"{file["sha256"]}"',
        "X-Linked-Size": str(file["size"]),
        "Location": location,
    }
    if xet_hash := names.store.xet_hashes().get(file["sha256"]):
        token = f"{request.server.url}/api/{repository.type}s/{repository.id}/xet-read-token/{commit['oid']}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Reply(302, b"", headers)


def content(request: Any, names: Names) -> Reply:
    found: Path = names.store.object(names.given["sha256"])
    if not found.exists():
        raise Refusal(404, "Not found")
    return Reply(200, found, {"ETag": f'"{names.given["sha256"]}"', "Accept-Ranges": "bytes"})


_REPOSITORY = r"/api/(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<type>datasets|spaces)/)?(?P<id>[^/]+/[^/]+?)"
_REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"{_REPOSITORY}(?:/revision/{_REVISION})?", information),
    ("GET", rf"{_REPOSITORY}/tree/{_REVISION}(?:/(?P<path>.+))?", tree),
    ("POST", rf"{_REPOSITORY}/paths-info/{_REVISION}", paths_info),
    ("GET", rf"{_REPOSITORY}/refs", references),
    ("POST", rf"{_REPOSITORY}/preupload/{_REVISION}", preupload),
    ("GET", rf"{_REPOSITORY}/xet-(?P<right>read|write)-token/{_REVISION}", xet_token),
    ("POST", rf"{_REPOSITORY}/commit/{_REVISION}", commit),
    ("POST", rf"{_REPOSITORY}/tag/{_REVISION}", tag),
    ("PUT", rf"{_REPOSITORY}/settings", settings),
    ("POST", r"/api/(?P<type>spaces)/(?P<id>[^/]+/[^/]+)/secrets", secret),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/upload/(?P<sha256>\w+)", lfs_put),
    ("POST", r"/uploaded/(?P<sha256>\w+)", lfs_check),
    ("HEAD", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", resolve),
    ("GET", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", resolve),
    ("GET", r"/content/(?P<sha256>\w+)", content),
]
__all__ = ["GIT_ATTRIBUTES", "ROUTES", "Reply", "routes_of"]
