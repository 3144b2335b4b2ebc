"""A server on loopback that speaks W&B's protocol: it keeps what arrives, and refuses what a test names."""

import base64
import json
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

KEY = "a" * 40
ENTITY = "me"


@dataclass
class Arrived:
    """A run as the server has it: what its upserts said last, its streams, files and artifacts."""

    told: dict = field(default_factory=dict)
    lines: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None

    @property
    def config(self):
        return {key: one["value"] for key, one in json.loads(self.told["config"]).items()}

    @property
    def rows(self):
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self):
        """The last line of the stream; W&B's run table shows these."""
        return json.loads(self.lines["wandb-summary.json"][-1])

    @property
    def axes(self):
        """The x axis of each key that has one of its own; keys and axes refer to their place in a list."""
        metrics = self.config["_wandb"]["m"]
        named = {one["1"]: one for one in metrics if "1" in one}
        return {key: metrics[one["5"] - 1]["1"] for key, one in named.items() if "5" in one}


class Server(ThreadingHTTPServer):
    """Answers wandb's client.

    Attributes:
        runs: What arrived, by id.
        views: Workspaces by internal name.
        trials: Parameters that the sweep hands out, each once.
        refusals: Messages by GraphQL field, each with a status.
        portal: Status, type and content of each answer, if it is not W&B's at all.
    """

    daemon_threads = True
    gone = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.forget()

    def forget(self):
        self.runs, self.views = {}, {}
        self.trials, self.sweep, self.refusals, self.portal = [], "{}", {}, None

    @contextmanager
    def serving(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self):
        self.gone = True
        self.shutdown()
        self.server_close()

    def run(self, name):
        return self.runs.setdefault(name, Arrived())

    # The fields of W&B's GraphQL, by name.

    def upsertBucket(self, given):
        run = self.run(given.get("name") or given["id"])
        new = not run.told
        run.told.update({key: value for key, value in given.items() if value is not None})
        return {"bucket": bucket(run), "inserted": new, "serverSettings": {"serverMessages": []}}

    def model(self, given):
        run = self.runs.get(given["name"])
        return {**project(given.get("project")), "bucket": run and bucket(run)}

    def project(self, given):
        sweep = {"id": "1", "name": given.get("sweep"), "config": self.sweep, "runs": {"edges": []}}
        views = {"edges": [{"node": {"id": one, "displayName": one}} for one in self.views]}
        return {**project(given.get("project")), "sweep": sweep, "allViews": views, "artifact": None}

    def entity(self, given):
        return {"id": "1", "name": given.get("entityName"), "organization": None}

    def createRunFiles(self, given):
        at = f"{self.url}/files/{given['entity']}/{given['project']}/{given['run']}"
        files = [{"name": name, "uploadUrl": f"{at}/{name}"} for name in given["files"]]
        return {"runID": given["run"], "uploadHeaders": [], "files": files}

    def createArtifact(self, given):
        self.run(given["input"]["runName"]).artifacts.append(given["input"])
        about = {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1", "latestArtifact": None}}
        return {"artifact": about}

    def upsertView(self, given):
        inserted = given["name"] not in self.views
        self.views[given["name"]] = given
        view = {"id": "1", "name": given["name"], "displayName": given.get("displayName")}
        return {"view": view, "inserted": inserted}

    def createAgent(self, given):
        return {"agent": {"id": "1"}}

    def agentHeartbeat(self, given):
        commands = []
        if self.trials:
            arguments = {key: {"value": value} for key, value in self.trials.pop(0).items()}
            name = f"trial{len(self.trials)}"
            commands = [{"type": "run", "run_id": name, "program": "", "args": arguments}]
        return {"agent": {"id": "1"}, "commands": json.dumps(commands)}


def project(name):
    return {"id": "1", "name": name, "entity": {"id": "1", "name": ENTITY}}


def bucket(run):
    rows = run.lines.get("wandb-history.jsonl", [])
    return {
        **{"id": "1", "name": run.told["name"], "displayName": run.told.get("displayName")},
        **{"config": run.told.get("config"), "sweepName": run.told.get("sweep")},
        **{"project": project(run.told["project"]), "historyLineCount": len(rows), "eventsLineCount": 0},
        **{"logLineCount": len(run.lines.get("output.log", [])), "eventsTail": "[]"},
        **{
            "historyTail": json.dumps(rows[-1:]),
            "tags": run.told.get("tags"),
            "notes": run.told.get("notes"),
        },
        **{"summaryMetrics": (run.lines.get("wandb-summary.json") or ["{}"])[-1], "wandbConfig": '{"t": 1}'},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle(self):
        with suppress(ConnectionError):  # wandb's client leaves as it likes.
            super().handle()

    def answer(self, body, status=200):
        if self.server.gone:
            raise ConnectionAbortedError
        content, kind = json.dumps(body).encode(), "application/json"
        if self.server.portal:
            status, kind, content = self.server.portal
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        _, _, _, _, run, name = unquote(self.path).split("/", 5)
        self.server.run(run).files[name] = self.body()
        self.answer({})

    def do_POST(self):
        content = self.body()
        if self.path == "/graphql":
            self.answer(*self.graphql(json.loads(content)))
        elif self.path.endswith("/file_stream"):
            run = self.server.run(self.path.split("/")[-2])
            told = json.loads(content)
            for name, part in (told.get("files") or {}).items():
                kept = run.lines.setdefault(name, [])
                kept[part["offset"] :] = part["content"]
            run.exit_code = told.get("exitcode", run.exit_code)
            self.answer({"exitcode": None, "limits": {}})
        else:
            self.answer({}, 404)

    def graphql(self, request):
        wanted = base64.b64encode(f"api:{KEY}".encode()).decode()
        if wanted not in self.headers.get("Authorization", ""):
            return {"errors": [{"message": "user is not logged in"}]}, 401
        name = re.search(r"\{\s*(\w+)", request["query"])[1]
        if name in self.server.refusals:
            message, status = self.server.refusals[name]
            return {"data": {name: None}, "errors": [{"message": message, "path": [name]}]}, status
        viewer = {"id": "1", "username": ENTITY, "entity": ENTITY, "name": ENTITY, "flags": "{}", "email": ""}
        viewer |= {"teams": {"edges": []}, "admin": False}
        found = {"viewer": viewer, "serverInfo": {"features": []}, "__type": {"fields": []}}
        if answer := getattr(self.server, name, None):
            found[name] = answer(request.get("variables") or {})
        return {"data": found}, 200
