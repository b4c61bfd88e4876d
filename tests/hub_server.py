"""A hub on this machine: the part of the protocol that pulling speaks, and its bad days.

    GET  /api/models/{repository}/revision/{revision}       what there is, with sizes and hashes
    HEAD, GET /{repository}/resolve/{revision}/{file}       a file; a large one is redirected
    GET  /cdn/{repository}/{file}                           its bytes, by ranges

The redirect leads to another origin (`localhost` for `127.0.0.1`), as the real one does: a token
must not follow it. Loopback only, a bounded number of threads, gone with its `with`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

THREADS = 8
LARGE = 4096  # bytes from which on a file is in large-file storage
_CHUNK = 1 << 14


@dataclass
class Hub:
    """What is served, how badly, and what was asked.

    Attributes:
        repositories: repository → file → bytes.
        gated: repository → the status that its files answer with (401, 403).
        status: file → a status that it answers with instead of bytes.
        short: file → bytes there really are of it, fewer than the listing says.
        dropped: file → bytes after which every connection breaks.
        wrong: files of which other bytes come than the listing says.
        claimed: file → a size that the listing says instead of the true one.
        pause: seconds before each chunk of 16 KiB.
        served: file → bytes sent.
        ranges: (file, first byte) of every request for bytes.
        tokens: the paths that were asked for with a token.
    """

    port: int
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    claimed: dict[str, int] = field(default_factory=dict)
    pause: float = 0.0
    served: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repository: str) -> str:
        """The commit of a repository's main branch: another one after every change."""
        digest = hashlib.sha1(repository.encode())
        for file, content in sorted(self.repositories[repository].items()):
            digest.update(f"{file} {git_name(content)}".encode())
        return digest.hexdigest()

    def forget_traffic(self) -> None:
        """Count from zero."""
        self.served.clear()
        self.ranges.clear()
        self.tokens.clear()

    def sent(self, file: str, count: int) -> None:
        with self._lock:
            self.served[file] = self.served.get(file, 0) + count

    @contextmanager
    def sending(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


def git_name(content: bytes) -> str:
    """Git's object id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that stand for weights."""
    return random.Random(seed).randbytes(size)


def diffusers_repository() -> dict[str, bytes]:
    """A repository as a model in the diffusers layout needs it, and more that is not needed."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    return {
        "model_index.json": b'{"_class_name": "WanPipeline"}',
        "README.md": b"a card",
        "assets/picture.png": noise(9000),
        "transformer/config.json": b'{"a": 1}',
        "transformer/model-00001-of-00002.safetensors": noise(50_000, 3),
        "transformer/model-00002-of-00002.safetensors": noise(50_000, 4),
        "transformer/model.safetensors.index.json": json.dumps(index).encode(),
        "transformer/pytorch_model.bin": b"a pickle",
        "vae/config.json": b"{}",
        "vae/model.safetensors": noise(20_000, 5),
        "text_encoder/config.json": b'{"b": 2}',
        "text_encoder/model.safetensors": noise(20_000, 6),
        "tokenizer/tokenizer.json": b'{"c": 3}',
        "tokenizer/spiece.model": noise(5000, 7),
        "scheduler/scheduler_config.json": b'{"d": 4}',
    }


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers inside the `with`."""
    with ThreadPoolExecutor(THREADS) as pool:

        class Server(HTTPServer):
            def process_request(self, request: Any, client_address: Any) -> None:
                pool.submit(self._answer, request, client_address)

            def _answer(self, request: Any, client_address: Any) -> None:
                with suppress(OSError):  # the client has gone
                    self.finish_request(request, client_address)
                self.shutdown_request(request)

        server = Server(("127.0.0.1", 0), _Handler)
        server.hub = Hub(port=server.server_address[1])  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.hub  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request, one connection (HTTP/1.0)."""

    timeout = 20

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.headers.get("Authorization"):
            self.hub.tokens.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._listing(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._bytes(match[1], match[2], {})
        else:
            self._refuse(404, "")

    def _listing(self, repository: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            self._refuse(401, "RepoNotFound")
            return
        siblings = []
        for file, content in sorted(files.items()):
            size = self.hub.claimed.get(file, len(content))
            entry: dict[str, Any] = {"rfilename": file, "size": size, "blobId": git_name(content)}
            if len(content) >= LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
            siblings.append(entry)
        answer = {"id": repository, "sha": self.hub.commit(repository), "siblings": siblings}
        self._answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, file: str) -> None:
        files = self.hub.repositories.get(repository)
        if repository in self.hub.gated:
            self._refuse(self.hub.gated[repository], "GatedRepo")
        elif files is None:
            self._refuse(401, "RepoNotFound")
        elif file not in files:
            self._refuse(404, "EntryNotFound")
        elif file in self.hub.status:
            self._refuse(self.hub.status[file], "")
        elif len(files[file]) < LARGE:
            commit = {"X-Repo-Commit": self.hub.commit(repository)}
            self._bytes(repository, file, {**commit, "ETag": f'"{git_name(files[file])}"'})
        else:
            self.send_response(302)
            self.send_header("X-Repo-Commit", self.hub.commit(repository))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(files[file]).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(files[file])))
            self.send_header(
                "Location", f"http://localhost:{self.hub.port}/cdn/{repository}/{file}"
            )
            self.end_headers()

    def _bytes(self, repository: str, file: str, headers: dict[str, str]) -> None:
        content = self.hub.repositories[repository][file]
        if file in self.hub.wrong:
            content = bytes(len(content) - 1) + b"\1"
        there = content[: self.hub.short.get(file, len(content))]
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        self.hub.ranges.append((file, first))
        if match and first >= len(there):
            self._refuse(416, "")
            return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        last = min(len(there), first + self.hub.dropped.get(file, len(there)))
        with self.hub.sending():
            for start in range(first, last, _CHUNK):
                time.sleep(self.hub.pause)
                chunk = there[start : min(start + _CHUNK, last)]
                self.wfile.write(chunk)
                self.hub.sent(file, len(chunk))

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
