"""A double of the Hugging Face hub's HTTP interface, as far as its client asks when it reads a data set: python -m ... PORT FOLDER [TOKEN]

    FOLDER/OWNER/NAME/...                          a repository, whose one revision is main
    GET  /api/datasets/OWNER/NAME[/revision/REV]   whether there is one
    GET  /api/datasets/OWNER/NAME/tree/REV/PATH    what a folder holds
    POST /api/datasets/OWNER/NAME/paths-info/REV   what is known of a file
    GET  /datasets/OWNER/NAME/resolve/REV/PATH     its content, ranges of it too

With a token, repositories whose names begin with "private" are there for who bears it; "gated" ones are for nobody.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ROUTE = re.compile(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)/([^/]+)(?:/(.*))?)?")


class Refused(Exception):
    """A status, and the code and message by which the hub says what is wrong."""


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder, token = Path(), ""

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        try:
            self._serve(body)
        except Refused as refused:
            status, code, *message = refused.args
            self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "".join(message)})

    do_GET = do_POST = do_HEAD = serve

    def _serve(self, body: str) -> None:
        route = ROUTE.fullmatch(unquote(urlsplit(self.path).path))
        if route is None:
            raise Refused(404, "")
        _, name, what, revision, path = route.groups()
        repository = self._repository(name)
        if revision not in (None, "main"):
            raise Refused(404, "RevisionNotFound")
        if what == "tree":
            self._json(self._tree(repository, path or ""))
        elif what == "paths-info":
            self._json([_about(repository, repository / each) for each in parse_qs(body)["paths"] if (repository / each).exists()])
        elif what == "resolve":
            if repository.name.startswith("gated"):
                raise Refused(403, "GatedRepo")
            self._content(repository / (path or ""))
        else:
            self._json({"id": name, "sha": "0" * 40, "private": False})

    def _repository(self, name: str) -> Path:
        """The hub says of what is private that it is not there."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        owned = name.partition("/")[2]
        if bearer and bearer != self.token:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if not (self.folder / name).is_dir() or (owned.startswith("private") and not bearer):
            raise Refused(404 if bearer else 401, "RepoNotFound")
        return self.folder / name

    def _tree(self, repository: Path, path: str) -> list[dict[str, object]]:
        if not (repository / path).is_dir():
            raise Refused(404, "EntryNotFound")
        deep = "recursive=true" in self.path.lower()
        return [_about(repository, each) for each in sorted((repository / path).glob("**/*" if deep else "*"))]

    def _content(self, path: Path) -> None:
        if not path.is_file():
            raise Refused(404, "EntryNotFound")
        content, headers = path.read_bytes(), {"ETag": _oid(path), "X-Repo-Commit": "0" * 40}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked is None:
            self._answer(200, content, headers)
            return
        first, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if first >= len(content):
            raise Refused(416, "")
        self._answer(206, content[first:end], {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"})

    def _json(self, answer: object) -> None:
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Quiet."""


def _about(repository: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path)}


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    _, port, folder, *token = sys.argv
    Hub.folder, Hub.token = Path(folder), token[0] if token else ""
    ThreadingHTTPServer(("127.0.0.1", int(port)), Hub).serve_forever()
