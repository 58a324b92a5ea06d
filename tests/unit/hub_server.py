"""A hub on this machine: the few routes that huggingface_hub asks for when it downloads, over real sockets."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.http_fake import Answer, Asked, Server

COMMIT = "5" * 40
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    files: dict[str, bytes]
    gated: bool = False
    revisions: set[str] = field(default_factory=lambda: {"main", "v1", COMMIT})


class Hub(Server):
    """`repositories`: "models/owner/name" or "datasets/owner/name"."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        super().__init__()

    def put(self, name: str, folder: Path) -> Repository:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[name] = Repository(files)
        return self.repositories[name]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if found := _API.fullmatch(asked.path):
            kind, name, what, revision = found.groups()
        elif found := _FILE.fullmatch(asked.path):
            kind, name, revision, what = "datasets" if found[1] else "models", found[2], found[3], found[4]
        else:
            return Answer(404)
        repository = self.repositories.get(f"{kind}/{name}")
        if repository is None:
            return Answer(404, headers={"X-Error-Code": "RepoNotFound"})
        if repository.gated and asked.headers.get("authorization") != "Bearer hf_let_me_in":
            return Answer(401, headers={"X-Error-Code": "GatedRepo"})
        if revision not in repository.revisions:
            return Answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        return self._content(asked, name, what, repository)

    def _content(self, asked: Asked, name: str, what: str, repository: Repository) -> Answer:
        if what == "revision":
            return Answer(body={"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in repository.files]})
        if what == "tree":
            return Answer(
                body=[
                    {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                    for file, content in repository.files.items()
                ]
            )
        if what not in repository.files:
            return Answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = repository.files[what]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(content)}"', "Content-Length": str(len(content))}
        return Answer(body=content, headers=headers)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
