"""A Hugging Face Hub on the loopback address: it takes commits, and serves their files."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes]

    @property
    def endpoint(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/preupload/main"):
            named = json.loads(body)["files"]
            facts = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": each["path"], **facts} for each in named]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.endpoint}/some/student/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        else:  # create a repository, check a card
            self.answer({"url": f"{self.endpoint}/some/student", "id": "some/student", "errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "some/student", "sha": COMMIT, "siblings": siblings})
            return
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def answer(self, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[dict[str, bytes]]:
    """Serve a Hub with an empty repository, and let the library use it; the files are those of the last commit."""
    from huggingface_hub import constants, file_download

    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Repository", (Hub,), {"files": files}))
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for module in (constants, file_download):  # before 1.0 the latter has a copy
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
