"""As much of a W&B server, on the loopback interface, as the real client needs in tests."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What the client has sent.

    Attributes:
        url: Where it listens.
        history: Rows of each run by id, as far as they were uploaded.
        summary: Of each run, the last.
        views: Variables of every saved view.
        errors: Answers to operations by name, instead of the usual ones.
        status: Of every answer about an operation that has an error.
    """

    url: str = ""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    status: int = 200

    @property
    def environment(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "a" * 40,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
        }

    def upload(self, run: str, files: dict[str, Any]) -> None:
        for name, part in files.items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                del self.history.setdefault(run, [])[part["offset"] :]
                self.history[run] += lines
            elif name == "wandb-summary.json" and lines:
                self.summary[run] = lines[-1]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation in self.errors:
            return {"errors": [{"message": self.errors[operation]}], "data": None}
        match operation:
            case "Viewer":
                viewer = {"id": "V", "entity": "me", "username": "me", "flags": "{}"}
                return {"data": {"viewer": viewer | {"teams": {"edges": []}}}}
            case "UpsertView2":
                self.views.append(variables)
                view = {"id": "view-id", "name": variables["name"]}
                return {"data": {"upsertView": {"view": view, "inserted": True}}}
            case "RunResumeStatus":
                return {"data": {"model": self._model(variables["name"])}}
            case "UpsertBucket":
                return {"data": {"upsertBucket": self._bucket(variables["name"])}}
            case "CreateArtifact":
                newest = {"id": "S", "latestArtifact": {"id": "A", "versionIndex": 0}}
                artifact = {"id": "A", "state": "COMMITTED", "artifactSequence": newest}
                return {"data": {"createArtifact": {"artifact": artifact}}}
            case "ArtifactType":
                return {"data": {"project": {"artifact": None}}}
            case "CreateRunFiles":
                made = {"runID": "R", "uploadHeaders": [], "files": []}
                return {"data": {"createRunFiles": made}}
        return {"data": {}}

    def _model(self, run: str) -> dict[str, Any] | None:
        rows = self.history.get(run)
        if not rows:
            return None
        bucket = {
            "id": "R", "name": run, "displayName": run, "config": "{}", "tags": [],
            "summaryMetrics": json.dumps(self.summary.get(run, {})), "logLineCount": 0,
            "historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(rows[-1])]),
            "eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        entity = {"id": "E", "name": "me"}
        return {"id": "P", "name": "p", "entity": entity, "bucket": bucket}

    def _bucket(self, run: str) -> dict[str, Any]:
        project = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}
        bucket = {
            "id": "R", "name": run, "displayName": run, "description": None, "config": "{}",
            "sweepName": None, "project": project,
            "historyLineCount": len(self.history.get(run, [])),
        }  # fmt: skip
        return {"bucket": bucket, "inserted": run not in self.history}


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Serve until the end of the block."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._send({})

        def do_PUT(self) -> None:
            self._body()
            self._send({})

        def do_POST(self) -> None:
            try:
                body = json.loads(self._body())
            except ValueError:  # telemetry
                return self._send({})
            if self.path.endswith("/file_stream"):
                server.upload(self.path.split("/")[-2], body.get("files") or {})
                return self._send({})
            found = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
            operation = found[1] if found else ""
            status = server.status if operation in server.errors else 200
            return self._send(server.answer(operation, body.get("variables") or {}), status)

        def _body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            packed = self.headers.get("Content-Encoding") == "gzip"
            return gzip.decompress(raw) if packed else raw

        def _send(self, answer: Any, status: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...  # a client that has gone

    http = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
