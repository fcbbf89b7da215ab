"""A hub on localhost that speaks what snapshot_download asks of one: a revision's commit, its tree, and the files."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^?]+)")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>[^?]+)")


class Hub:
    """Repositories by name, each with its commits: folders on the disk.

    Attributes:
        url: of the server.
        asked: the files of which the content was asked for.
        gated: names of repositories that nobody may read.
    """

    def __init__(self):
        self.repositories, self.gated, self.asked = {}, set(), []
        self.url = ""

    def commit(self, repository, folder):
        """Makes a folder the newest revision of a repository; its commit."""
        content = b"".join(
            path.read_bytes() + str(path).encode() for path in sorted(Path(folder).rglob("*")) if path.is_file()
        )
        commit = hashlib.sha1(content).hexdigest()  # noqa: S324 - a commit is one
        commits = self.repositories.setdefault(repository, {})
        commits[commit] = commits["main"] = Path(folder)
        commits["main", "is"] = commit
        return commit

    def answer(self, path):
        """(status, headers, body) of a request."""
        if found := _API.fullmatch(path.partition("?")[0]):
            return self._api(**found.groupdict())
        if found := _FILE.fullmatch(path.partition("?")[0]):
            return self._file(**found.groupdict())
        return 404, {}, b""

    def _folder(self, repository, revision):
        """(commit, folder), or the answer of a hub to one who asks in vain."""
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        commits = self.repositories.get(repository)
        if commits is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        revision = revision.replace("%2F", "/")
        if revision not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        return commits["main", "is"] if revision == "main" else revision, commits[revision]

    def _api(self, repository, what, revision):
        found = self._folder(repository, revision)
        if len(found) == 3:
            return found
        commit, folder = found
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if what == "revision":
            about = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        else:
            about = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in files.items()
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()

    def _file(self, repository, revision, path):
        found = self._folder(repository, revision)
        if len(found) == 3:
            return found
        commit, folder = found
        if not (folder / path).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(folder / path)}"'}, (folder / path).read_bytes()


def _etag(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()  # noqa: S324 - as git names its blobs


@contextlib.contextmanager
def running():
    """A context with a Hub that answers."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._send(body=False)

        def do_GET(self):
            if found := _FILE.fullmatch(self.path.partition("?")[0]):
                hub.asked.append(found["path"])
            self._send(body=True)

        def _send(self, *, body):
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    hub.url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
