"""A fake Hub on loopback: everything the unmodified client needs to create, upload and download, with optional faults.

Errors carry the headers of the real Hub (`X-Error-Code`, `X-Error-Message`), which the client turns into exceptions.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "me"
TOKENS = {"hf_writer": "write", "hf_reader": "read"}  # not real tokens
NEEDED = {
    "model": {"license"},
    "space": {"title", "emoji", "colorFrom", "colorTo", "sdk", "app_file"},
}
NEEDED_BY_SDK = {"gradio": {"sdk_version", "python_version"}}


class Refusal(Exception):
    """An error response."""

    def __init__(self, status: int, message: str = "", code: str = "", **headers: str):
        self.status = status
        self.headers = {"X-Error-Message": message, "X-Error-Code": code, **headers}


def no_repository() -> Refusal:
    return Refusal(404, "Repository not found", "RepoNotFound")


def commit_hash(parent: str, files: dict[str, bytes]) -> str:
    listing = "".join(f"{name} {hashlib.sha1(content).hexdigest()}\n" for name, content in sorted(files.items()))
    return hashlib.sha1(f"{parent}\n{listing}".encode()).hexdigest()


@dataclass
class Repository:
    """A repository as commits, each a complete file tree; `refs` names some of them."""

    private: bool = False
    gated: bool = False
    sdk: str = ""
    hardware: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    damage: dict[str, bytes] = field(default_factory=dict)  # content sent instead of a file, by name

    def __post_init__(self):
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(
        self, ref: str, files: dict[str, bytes], parent: str = "", deleted: Collection[str] = frozenset()
    ) -> str:
        parent = self.refs.get(ref, parent)
        tree = {name: content for name, content in self.commits.get(parent, {}).items() if name not in deleted} | files
        name = commit_hash(parent, tree)
        self.commits[name] = tree
        self.refs[ref] = name
        return name

    def resolve(self, revision: str) -> str:
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return commit


@dataclass
class Fault:
    """A fault for the first `times` requests whose `METHOD path` matches.

    `action` is "hang", "cut" (close without a response), "short" (cut in the middle of the body), or a refusal.
    """

    pattern: str
    action: str | Refusal
    times: float = float("inf")


class Double:
    """The server, as a context manager, in a separate thread; `log` holds each request as `METHOD path`."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS uploads, by sha256
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = threading.Lock()
        self.released = threading.Event()

    def __enter__(self) -> "Double":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"double": self}))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.reset()
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """Remove everything and release hanging requests."""
        self.faults = []
        self.repositories.clear()
        self.objects.clear()
        released, self.released = self.released, threading.Event()
        released.set()

    def model(self, name: str, files: dict[str, bytes], **about) -> Repository:
        """Add a model repository, as if it had been published before."""
        self.repositories["model", name] = repository = Repository(**about)
        repository.commit("main", files)
        return repository

    def strike(self, wanted: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, wanted):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    double: Double
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    # ---- one request

    def handle_request(self):
        url = urlsplit(self.path)
        self.route, self.query = url.path, parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted = f"{self.command} {unquote(self.route)}"
        self.double.log.append(wanted)
        released = self.double.released
        fault = self.double.strike(wanted)
        self.cut_short = fault is not None and fault.action == "short"
        if fault and fault.action == "hang":
            released.wait(120)
        if fault and fault.action in ("hang", "cut"):
            self.close_connection = True
            return
        try:
            if fault and isinstance(fault.action, Refusal):
                raise fault.action
            self.dispatch()
        except Refusal as refusal:
            self.answer(refusal.status, b"", refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def dispatch(self):
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method:
                return act(
                    self, **{name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                )
        raise Refusal(404, f"the double does not know {self.command} {self.route}")

    def answer(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut_short else content)
        if self.cut_short:
            self.close_connection = True

    def say(self, data, status: int = 200):
        self.answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    # ---- permissions

    def role(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, "")

    def writable(self, owner: str):
        role = self.role()
        if not role:
            raise Refusal(401, "Invalid username or password.")
        if role != "write" or owner != USER:
            raise Refusal(403, "You don't have the rights to do this with this token")

    def repository(self, id: str, kind: str = "model") -> Repository:
        role, found = self.role(), self.double.repositories.get((kind, id))
        if found is None or (found.private and not role):
            raise no_repository() if role else Refusal(401, "Invalid username or password.", "RepoNotFound")
        return found

    # ---- the protocol, in the order of an upload

    def create(self):
        asked = json.loads(self.body)
        kind, id = asked.get("type") or "model", f"{asked['organization'] or USER}/{asked['name']}"
        self.writable(id.partition("/")[0])
        if (kind, id) in self.double.repositories:
            return self.say({"error": "You already created this repo", "url": f"{self.double.address}/{id}"}, 409)
        if kind == "space" and asked["sdk"] != "static" and asked.get("hardware") != "zero-a10g":
            raise Refusal(402, "Payment required: a CPU Space needs a PRO subscription")
        variables = {item["key"]: item["value"] for item in asked.get("variables", [])}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.double.repositories[kind, id] = Repository(
            private, False, asked.get("sdk", ""), asked.get("hardware", ""), variables
        )
        self.say({"url": f"{self.double.address}/{'spaces/' if kind == 'space' else ''}{id}"})

    def validate(self):
        asked = json.loads(self.body)
        front = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        data = (yaml.safe_load(front[1]) if front else None) or {}
        needed = NEEDED[asked["repoType"]] | NEEDED_BY_SDK.get(data.get("sdk"), set())
        errors = [f'"{name}" is required' for name in sorted(needed - set(data))]
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" must be at most 60 characters')
        self.say({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def branch(self, kind: str, id: str, name: str):
        self.writable(id.partition("/")[0])
        repository = self.repository(id, kind)
        if name in repository.refs:
            raise Refusal(409, "Reference already exists")
        repository.refs[name] = repository.refs["main"]
        self.say({})

    def preupload(self, kind: str, id: str, revision: str):
        self.writable(id.partition("/")[0])
        repository = self.repository(id, kind)
        there = repository.commits[repository.resolve(revision)]
        files = []
        for asked in json.loads(self.body)["files"]:
            name, large = asked["path"], asked["path"].endswith((".safetensors", ".png"))
            files.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if name in there:
                content = there[name]
                git = hashlib.sha1(b"blob %d\0" % len(content) + content)
                files[-1]["oid"] = (hashlib.sha256(content) if large else git).hexdigest()
        self.say({"files": files})

    def batch(self, id: str, kind: str = "model"):
        self.writable(id.partition("/")[0])
        self.repository(id, "space" if kind == "spaces/" else "model")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            objects.append({"oid": asked["oid"], "size": asked["size"]})
            if asked["oid"] not in self.double.objects:
                address = self.double.address
                actions = {"upload": {"href": f"{address}/lfs/{asked['oid']}"}, "verify": {"href": f"{address}/verify"}}
                objects[-1]["actions"] = actions
        self.say({"transfer": "basic", "objects": objects})

    def put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content is not what its hash says")
        self.double.objects[oid] = self.body
        self.say({})

    def verify(self):
        asked = json.loads(self.body)
        if len(self.double.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "Object not found")
        self.say({})

    def commit(self, kind: str, id: str, revision: str):
        self.writable(id.partition("/")[0])
        repository = self.repository(id, kind)
        files, deleted = {}, set()
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.double.objects:
                    raise Refusal(400, "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.double.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.add(value["path"])
        base = f"{self.double.address}/{'spaces/' if kind == 'space' else ''}{id}"
        answer = {}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            answer["pullRequestUrl"] = f"{base}/discussions/{number}"
            name = repository.commit(f"refs/pr/{number}", files, repository.resolve(revision), deleted)
        else:
            repository.resolve(revision)
            name = repository.commit(revision, files, deleted=deleted)
        self.say({**answer, "success": True, "commitOid": name, "commitUrl": f"{base}/commit/{name}"})

    def info(self, kind: str, id: str, revision: str = "main"):
        repository = self.repository(id, kind)
        name = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in repository.commits[name]]
        about = {"id": id, "sha": name, "private": repository.private, "siblings": siblings, "tags": []}
        self.say(about | ({"sdk": repository.sdk} if kind == "space" else {}))

    def file(self, id: str, revision: str, path: str, kind: str = "model"):
        repository = self.repository(id, "space" if kind == "spaces/" else "model")
        if repository.gated:
            raise Refusal(403 if self.role() else 401, "Access to this model is restricted", "GatedRepo")
        name = repository.resolve(revision)
        if path not in repository.commits[name]:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": name})
        content = repository.commits[name][path]
        large = path.endswith((".safetensors", ".png"))
        etag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        headers = {"X-Repo-Commit": name, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        status, sent = 200, repository.damage.get(path, content)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(sent) - 1}/{len(sent)}"
            sent = sent[start:]
        self.answer(status, sent, headers)

    def variables(self, id: str):
        repository = self.repository(id, "space")
        self.writable(id.partition("/")[0])
        if self.command == "POST":
            asked = json.loads(self.body)
            repository.variables[asked["key"]] = asked["value"]
        self.say({key: {"value": value} for key, value in repository.variables.items()})

    def hardware(self, id: str):
        self.writable(id.partition("/")[0])
        asked = json.loads(self.body)["flavor"]
        if asked != "zero-a10g":
            raise Refusal(402, "Payment required")
        self.repository(id, "space").hardware = asked
        self.say({"stage": "BUILDING", "hardware": {"current": None, "requested": asked}})


NAME, KIND = r"(?P<id>[^/]+/[^/]+?)", r"(?P<kind>model|space)s"
ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/{KIND}/{NAME}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"/(?P<kind>spaces/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.put),
    ("POST", r"/verify", Handler.verify),
    ("POST", rf"/api/{KIND}/{NAME}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("GET", rf"/api/{KIND}/{NAME}(/revision/(?P<revision>[^/]+))?", Handler.info),
    ("GET HEAD", rf"/(?P<kind>spaces/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.file),
    ("GET POST", rf"/api/spaces/{NAME}/variables", Handler.variables),
    ("POST", rf"/api/spaces/{NAME}/hardware", Handler.hardware),
)
