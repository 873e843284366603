"""A W&B server on the loopback interface, as much of one as the real client needs: runs, their history, saved views.

It keeps what it is sent and shows nothing. History is kept by line number, as W&B does: a client that starts counting
anew overwrites what was there, which is how a badly resumed run loses its beginning.
"""

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"


@dataclass
class Run:
    """What the server knows of a run."""

    id: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    state: str = "running"

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their lines."""
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """Last values; the whole of it arrives each time."""
        return json.loads(self.lines.get("wandb-summary.json", {}).get(0, "{}"))

    def bucket(self) -> dict[str, Any]:
        """As GraphQL answers; what a resuming client asks for is here."""
        tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
        return {
            "id": f"id-{self.id}", "name": self.id, "displayName": self.fields.get("displayName"),
            "config": json.dumps(self.config), "summaryMetrics": json.dumps(self.summary), "sweepName": None,
            "historyLineCount": len(self.history), "historyTail": tail, "eventsTail": "[]",
            "logLineCount": len(self.lines.get("output.log", {})),
            "eventsLineCount": len(self.lines.get("wandb-events.jsonl", {})),
            "wandbConfig": json.dumps({"t": 1}), "tags": self.fields.get("tags") or [],
            "project": {"id": "p", "name": self.project, "entity": {"id": "e", "name": ENTITY}},
        }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Listens on a free port from the moment it is made; use it in a `with`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Run] = {}
        self.views: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        self.shutdown()
        self.server_close()

    def __exit__(self, *args: object) -> None:
        self.close()

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one operation, None to one that is not known."""
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        operation = match[1] if match else ""
        project = given.get("project") or given.get("projectName") or given.get("name")
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "UpsertBucket":
            return self._upsert_run(given)
        if operation == "RunResumeStatus":
            run = self.runs.get(given["name"])
            return {"model": {"id": "p", "name": project, "entity": {"name": ENTITY}, "bucket": run and run.bucket()}}
        if operation == "CreateRunFiles":
            urls = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": urls}}
        if "upsertView" in query:
            self.views.append(given)
            view = {key: given.get(key) for key in ("name", "type", "displayName", "description", "spec")}
            view |= {"id": "v", "project": {"id": "p", "name": project, "entityName": ENTITY}}
            return {"upsertView": {"view": view, "inserted": True}}
        if operation == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        if operation == "ProjectInternalId":
            return {"project": {"id": "p", "internalId": "1"} if project in self._projects() else None}
        if operation == "GetProjects":
            facts = {"id": "p", "entityName": ENTITY, "createdAt": "", "isBenchmark": False, "user": None}
            edges = [{"node": {**facts, "name": name}, "cursor": ""} for name in self._projects()]
            return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}
        self.refused.append(query)
        return None

    def _projects(self) -> set[str]:
        return {run.project for run in self.runs.values()}

    def _upsert_run(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or given["id"].removeprefix("id-")
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, given.get("project") or ""))
        run.fields |= {key: value for key, value in given.items() if value is not None}
        run.config |= json.loads(given.get("config") or "{}")
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": new}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Take in lines of a run's files, each at its place, and how the run ended."""
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            lines.update(enumerate(chunk["content"], chunk["offset"]))
        if body.get("complete"):
            run.state = "failed" if body.get("exitcode") else "finished"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        sent = json.loads(body)
        with self.server.lock:
            if self.path.startswith("/graphql"):
                data = self.server.graphql(sent["query"], sent.get("variables") or {})
                return self._answer({"data": data, "errors": [] if data else [{"message": "not known here"}]})
            self.server.stream(self.path.split("/")[4], sent)
        return self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        _, _, run, file = self.path.split("?")[0].split("/", 3)
        with self.server.lock:
            self.server.runs[run].files.add(file)
        self._answer({})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps({key: value for key, value in content.items() if value != []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
