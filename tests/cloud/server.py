"""A bucket on this machine: `python -m tests.cloud.server PORT BUCKET`, until its standard input ends.

It is `gcp-storage-emulator` with what that lacks: several requests at once, conditions on an object's generation (TensorStore and the lease
rely on these), pages and ranges of names in listings, a delay for each request, and failures on request.
`GET /_next?status=503&count=3&match=TEXT&method=POST` makes the next three requests fail whose path and query hold TEXT;
`GET /_delay?seconds=0.05` delays each request; `GET /_count` tells how many there were.
`GET /_page?names=3` makes pages of so many names, and `ranges=0` beside it lets ranges be ignored.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import logging
import sys
import threading
import time
import urllib.parse
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

_LOCK = threading.Lock()


class _Behaviour:
    seconds, requests = 0.0, 0
    names, ranges = 1000, 1
    status, count, match, method = 503, 0, "", ""


class Handler(RequestHandler):
    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def _serve(self, method: str) -> None:
        path, _, query = self.path.partition("?")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))  # a blank one takes back an earlier one
        if path.startswith("/_"):
            self._control(path, options)
            return
        _Behaviour.requests += 1
        time.sleep(_Behaviour.seconds)
        with _LOCK:
            wanted = _Behaviour.match in urllib.parse.unquote(self.path) and method.startswith(_Behaviour.method)
            if _Behaviour.count and wanted:
                _Behaviour.count -= 1
                self._refuse(_Behaviour.status, "on request")
                return
            self._generation = self._current(path, options)
            if status := self._unmet(options):
                self._refuse(status, "conditionNotMet")
            elif method == "GET" and path.endswith("/o") and "delimiter" not in options:
                self._list(path.split("/")[-2], options)
            else:
                getattr(super(), f"do_{method}")()

    def _list(self, bucket: str, options: dict[str, str]) -> None:
        """Answer with the objects in a range of names, as many as a page has; the token is the name that the next page begins with."""
        try:
            items, _ = self.storage.get_file_list(bucket, options.get("prefix"))
        except NotFound:
            self._refuse(404, "notFound")
            return
        bounds = options if _Behaviour.ranges else {}
        begin, end = max(bounds.get("startOffset", ""), options.get("pageToken", "")), bounds.get("endOffset")
        items = [item for item in items if item["name"] >= begin and (end is None or item["name"] < end)]
        size = min(_Behaviour.names, int(options.get("maxResults", 1000)))
        token = {"nextPageToken": items[size]["name"]} if len(items) > size else {}
        self._answer(200, {"kind": "storage#objects", "items": items[:size], **token})

    def _unmet(self, options: dict[str, str]) -> int:
        """The status of a request whose condition on the object's generation does not hold; 0 where it does."""
        match, other = options.get("ifGenerationMatch"), options.get("ifGenerationNotMatch")
        if match is not None and match != self._generation:
            return 412
        return 304 if other is not None and other == self._generation else 0

    def _current(self, path: str, options: dict[str, str]) -> str:
        """The generation of the object that a request is about, "0" where there is none; "" for requests about no object."""
        if "/b/" not in path:
            return ""
        bucket, _, name = path.partition("/b/")[2].partition("/o")
        name = urllib.parse.unquote(name.strip("/")) or options.get("name", "")
        if not name and options.get("uploadType") == "multipart":
            name = self._name_in_body()
        if not name:
            return ""
        try:
            return self.storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"

    def _name_in_body(self) -> str:
        """The name of a multipart upload stands in its first part."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.rfile = io.BytesIO(body)
        head = body.replace(b"\r\n", b"\n").split(b"\n\n")[1].split(b"\n--")[0]
        return json.loads(head)["name"]

    def _refuse(self, status: int, why: str) -> None:
        if not isinstance(self.rfile, io.BytesIO):
            self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(status, {"error": {"code": status, "message": why}})

    def end_headers(self) -> None:
        if self.command == "GET" and getattr(self, "_generation", "") not in ("", "0"):
            self.send_header("x-goog-generation", self._generation)
        super().end_headers()

    def _control(self, path: str, options: dict[str, str]) -> None:
        with _LOCK:
            for name, value in options.items():
                setattr(_Behaviour, name, type(getattr(_Behaviour, name))(value))
        self._answer(200, {"requests": _Behaviour.requests, "left": _Behaviour.count})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")


def main(port: int, bucket: str) -> None:
    """Serve until standard input ends."""
    logging.disable(logging.ERROR)
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(bucket, storage)
    http.server.ThreadingHTTPServer.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed is no news
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
