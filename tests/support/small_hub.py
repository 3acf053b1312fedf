"""A local hub with one data set: the part of huggingface.co's HTTP interface that reads data sets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NAME = "org/set"
_COMMIT = "0" * 40


class SmallHub(ThreadingHTTPServer):
    """Serves the files of `NAME`."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """
        Args:
            files: The content of each file of the data set, by its path.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"README.md": b"", **files}
        self.fetched: list[str] = []
        """The paths of files whose content was sent."""

    @property
    def url(self) -> str:
        """The value for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/datasets/{NAME}", self.server.files
        if path in {api, f"{api}/revision/main", f"{api}/revision/{_COMMIT}"}:
            siblings = [{"rfilename": name} for name in files]
            self._answer({"id": NAME, "_id": "1", "sha": _COMMIT, "siblings": siblings, "tags": [], "private": False})
        elif path.startswith(f"{api}/tree/{_COMMIT}"):
            self._answer([self._facts(name) for name in files])
        elif path.startswith(f"/datasets/{NAME}/resolve/"):
            self._send_file(path.removeprefix(f"/datasets/{NAME}/resolve/").partition("/")[2])
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = (
            json.loads(body)["paths"]
            if body.startswith(b"{")
            else [unquote(part.partition(b"=")[2].decode()) for part in body.split(b"&") if part.startswith(b"paths=")]
        )
        self._answer([self._facts(name) for name in wanted if name in self.server.files])

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Keep the tests' output clean."""

    def _facts(self, name: str) -> dict[str, object]:
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send_file(self, name: str) -> None:
        content = self.server.files.get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
            return
        if self.command == "GET":
            self.server.fetched.append(name)
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": _COMMIT})

    def _answer(self, document: object) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def small_hub(files: Mapping[str, bytes]) -> Iterator[SmallHub]:
    """A running hub with these files inside the block."""
    with SmallHub(files) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
