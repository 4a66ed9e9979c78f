"""A stand-in for the Hugging Face Hub on this machine: what pushing, fetching and ``load_dataset`` ask of it."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
USER = "someone"  # whose token it is


class Hub(ThreadingHTTPServer):
    """Repositories by name, each its files by path; whoever writes must carry the token."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.requests, self.complaints = {}, set(), [], []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def path_parts(self):
        self.server.requests.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def knows_the_caller(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def entries(self, name, folder):
        """The files of a repository below a folder."""
        found = self.server.repositories.get(name, {})
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in found.items()
            if path.startswith(folder)
        ]

    def do_POST(self):
        body = self.body()
        match self.path_parts():
            case ["api", "validate-yaml"]:
                errors = [{"message": words} for words in self.server.complaints]
                self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
            case _ if not self.knows_the_caller():
                self.answer(401, {"error": "Invalid username or password."})
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                code = 409 if name in self.server.repositories else 200
                self.server.repositories.setdefault(name, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    self.server.private.add(name)
                self.answer(code, {"url": f"{self.server.address}/datasets/{name}", "name": name})
            case ["api", "datasets", user, name, "preupload", "main"]:
                assert f"{user}/{name}" in self.server.repositories
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                self.answer(200, {"files": files})
            case ["api", "datasets", user, name, "commit", "main"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.server.repositories[f"{user}/{name}"][line["value"]["path"]] = content
                address = f"{self.server.address}/datasets/{user}/{name}/commit/{'1' * 40}"
                self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": address})
            case _:
                self.answer(404, {"error": "no such address"})

    def do_GET(self):
        match self.path_parts():
            case ["api", "whoami-v2"]:
                known = self.knows_the_caller()
                self.answer(200 if known else 401, {"type": "user", "name": USER} if known else {"error": "who?"})
            case ["api", "datasets", user, name] | ["api", "datasets", user, name, "revision", _]:
                names = [{"rfilename": path} for path in self.server.repositories.get(f"{user}/{name}", {})]
                self.answer(200, {"id": f"{user}/{name}", "sha": "1" * 40, "private": False, "siblings": names})
            case ["api", "datasets", user, name, "tree", _, *folder]:
                self.answer(200, self.entries(f"{user}/{name}", "/".join(folder)))
            case ["datasets", user, name, "resolve", revision, *rest]:
                repository = self.server.repositories.get(f"{user}/{name}")
                if repository is None or (f"{user}/{name}" in self.server.private and not self.knows_the_caller()):
                    self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
                elif revision not in ("main", "1" * 40):
                    self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
                elif (content := repository.get("/".join(rest))) is None:
                    self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                else:
                    digest = hashlib.sha1(content).hexdigest()
                    self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit="1" * 40)
            case _:
                self.answer(404, {"error": "no such address"})

    do_HEAD = do_GET


@contextlib.contextmanager
def standing_in():
    """A hub that answers until the end."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
