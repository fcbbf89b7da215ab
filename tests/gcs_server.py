"""As much of Google Cloud Storage's JSON API as the libraries below ask for, in memory, on localhost.

    with Server() as gcs:
        subprocess.run(command, env=os.environ | gcs.environment())  # gs://any-bucket/... works in there

Every bucket exists. No versions, no permissions, no gRPC. `python gcs_server.py PORT` runs it on its own.
"""

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_BUCKET = re.compile(r"(?:/download|/upload)?/storage/v1/b/([^/]+)(/o)?/?")
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")


class Server(ThreadingHTTPServer):
    """Holds objects: {(bucket, name): (resource, bytes)}.

    Attributes:
        log: (method, path, user agent) of every request.
        latency: seconds that an answer takes.
        broken: (method, path) -> a status to answer with, or None; for tests of failures.
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self, port: int = 0, latency: float = 0.0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[tuple[str, str], tuple[dict[str, Any], bytes]] = {}
        self.uploads: dict[str, tuple[str, str, dict[str, str], list[bytes]]] = {}
        self.numbers, self.lock = itertools.count(time.time_ns() // 1000), threading.RLock()
        self.log: list[tuple[str, str, str]] = []
        self.latency = latency
        self.broken: Callable[[str, str], int | None] | None = None

    def environment(self) -> dict[str, str]:
        """What points the libraries at this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs (epath), google-cloud-storage (Orbax, tensorboardX)
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks over gRPC what kind of bucket it is
            "NO_GCE_CHECK": "true",  # no metadata server
            "TENSORSTORE_GCS_HTTP_URL": self.url,  # TensorStore (Orbax)
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record
        }

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on answers they no longer need."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Raises _Status where the object's generation, 0 if there is none, is not the one asked for."""
        there = self.objects[bucket, name][0]["generation"] if (bucket, name) in self.objects else "0"
        if query.get("ifGenerationMatch", there) != there:
            raise _Status(412)
        if there != "0" and query.get("ifGenerationNotMatch") == there:
            raise _Status(304)

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict[str, Any]:
        """Stores an object and returns its resource."""
        with self.lock:
            self.check(bucket, name, query)
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            md5 = hashlib.md5(data, usedforsecurity=False).digest()
            resource = {
                "kind": "storage#object",
                "bucket": bucket,
                "name": name,
                "size": str(len(data)),
                "generation": str(next(self.numbers)),
                "metageneration": "1",
                "timeCreated": now,
                "updated": now,
                "md5Hash": base64.b64encode(md5).decode(),
            }
            self.objects[bucket, name] = resource, data
            return resource

    def page(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """One page of a bucket's objects and, with a delimiter, folders."""
        prefix, delimiter, limit = query.get("prefix", ""), query.get("delimiter"), int(query.get("maxResults", 1000))
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        items: list[Any] = []
        folders: dict[str, None] = {}
        page = {"kind": "storage#objects", "items": items, "prefixes": folders}
        with self.lock:
            for name in sorted(n for b, n in self.objects if b == bucket and n.startswith(prefix)):
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                shown = name if cut < 0 else name[: cut + 1]
                if shown < first or shown in folders or name >= query.get("endOffset", "\U0010ffff"):
                    continue
                if len(items) + len(folders) == limit:
                    page["nextPageToken"] = shown
                    break
                if cut < 0:
                    items.append(self.objects[bucket, name][0])
                else:
                    folders[shown] = None
        return page | {"prefixes": list(folders)}


class _Status(Exception):
    """An HTTP status other than success."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        server, url = self.server, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(server.latency)
        server.log.append((self.command, self.path, self.headers.get("User-Agent", "")))
        try:
            if server.broken and (status := server.broken(self.command, self.path)):
                raise _Status(status)
            with server.lock:
                answer = self._result(url.path, dict(parse_qsl(url.query)), body)
        except (_Status, KeyError) as failure:
            status = failure.args[0] if isinstance(failure, _Status) else 404
            answer = status, {"error": {"code": status, "message": f"{status} for {self.command} {url.path}"}}
        self._answer(*answer)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        data = b"" if status in (204, 304) else data
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _result(self, path: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        server = self.server
        if m := _MOVE.fullmatch(path):
            bucket, name, target = map(unquote, m.groups())
            _, data = server.objects.pop((bucket, name))
            return 200, server.put(bucket, target, data, query)
        if m := _COPY.fullmatch(path):
            bucket, name, *target = map(unquote, m.groups())
            _, data = server.objects[bucket, name]
            return 200, {"kind": "storage#rewriteResponse", "done": True, "resource": server.put(*target, data, query)}
        if m := _OBJECT.fullmatch(path):
            bucket, name = map(unquote, m.groups())
            resource, data = server.objects[bucket, name]
            server.check(bucket, name, query)
            if self.command == "DELETE":
                del server.objects[bucket, name]
                return (204,)
            return self._read(resource, data) if query.get("alt") == "media" else (200, resource)
        if not (m := _BUCKET.fullmatch(path)):
            raise _Status(501)
        if self.command == "POST":
            return self._upload(m[1], query, body)
        return 200, server.page(m[1], query) if m[2] else {"kind": "storage#bucket", "name": m[1], "id": m[1]}

    def _read(self, resource: dict[str, Any], data: bytes) -> tuple[Any, ...]:
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": resource["generation"]}
        if not (m := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            return 200, data, headers
        start = int(m[1]) if m[1] else max(0, len(data) - int(m[2]))
        part = data[start : int(m[2]) + 1 if m[1] and m[2] else None]
        if not part:
            raise _Status(416)
        return 206, part, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        server, kind = self.server, query.get("uploadType")
        if key := query.get("upload_id"):  # a part of a resumable upload
            _, name, conditions, parts = server.uploads[key]
            parts.append(body)
            if self.headers.get("Content-Range", "").endswith("/*"):
                return 308, b"", {"Range": f"bytes=0-{sum(map(len, parts)) - 1}"}
            del server.uploads[key]
            return 200, server.put(bucket, name, b"".join(parts), conditions)
        if kind == "resumable":
            key = str(next(server.numbers))
            server.uploads[key] = (bucket, query.get("name") or json.loads(body)["name"], query, [])
            location = f"{server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return 200, b"", {"Location": location}
        if kind == "multipart":  # the name, then the content
            boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].strip("\"'").encode()
            line = b"\r\n" if body.startswith(boundary + b"\r\n") else b"\n"
            _, head, content, _ = (line + body).split(line + boundary)
            name, body = json.loads(head.split(line * 2, 1)[1])["name"], content.split(line * 2, 1)[1]
        else:
            name = query["name"]
        return 200, server.put(bucket, name, body, query)


if __name__ == "__main__":
    with Server(int(sys.argv[1])) as running:
        print("\n".join(f"export {name}={value}" for name, value in running.environment().items()), flush=True)
        threading.Event().wait()
