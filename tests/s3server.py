"""A real S3 server process (moto's) that can be told to fail: `python -m tests.s3server`, its port on standard output.

POST /_faults with `{"kind": ..., "every": n, "methods": [...], "contains": "text"}` breaks every n-th matching request:

    503      "slow down", as a busy object store says it
    500      an internal error
    slow     the answer comes after `seconds`
    reset    the connection is cut when half of the body has been read
    after    the request is carried out, then the connection is cut: the writer cannot know
    none     no faults (counts go on)

GET /_faults gives what was asked and what was broken since the last POST: `requests`, `broken`, and `gets` by path.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


@dataclass
class Server:
    """A running server, seen from a test."""

    process: subprocess.Popen[str]
    port: int

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def faults(self, kind: str = "", **more: Any) -> dict[str, Any]:
        """Order faults, or without a kind ask what was counted since the last order."""
        data = json.dumps({"kind": kind, **more}).encode() if kind else None
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_faults", data=data) as answer:
            return dict(json.load(answer))


@contextmanager
def serving() -> Iterator[Server]:
    """A server process; this process's environment leads `s3://` there, and not to anything else, inside the block."""
    from raydrd.spine.remote import filesystem

    process = subprocess.Popen([sys.executable, "-m", "tests.s3server"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = Server(process, int(process.stdout.readline()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        filesystem.cache_clear()
        yield server
    filesystem.cache_clear()
    process.kill()
    process.wait()


class Faulty:
    """The application behind a plan of faults."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self.inner, self.lock = inner, threading.Lock()
        self.plan: dict[str, Any] = {"kind": "none"}
        self.counts: dict[str, Any] = {}
        self.clear()

    def clear(self) -> None:
        self.seen = 0
        self.counts = {"requests": 0, "broken": 0, "gets": Counter()}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_faults":
            return self.told(environ, start)
        kind = self.fault(environ)
        if kind in ("503", "500"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down" if kind == "503" else "500 Internal", [("Content-Type", "application/xml")])
            return [SLOW_DOWN if kind == "503" else INTERNAL]
        if kind == "slow":
            time.sleep(float(self.plan.get("seconds", 1.0)))
        if kind == "reset":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            return cut(environ)
        answer = self.inner(environ, start)
        return cut(environ) if kind == "after" else answer

    def fault(self, environ: dict[str, Any]) -> str:
        """What to do to this request; counts it."""
        path, plan = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}", self.plan
        with self.lock:
            self.counts["requests"] += 1
            if environ["REQUEST_METHOD"] == "GET":
                self.counts["gets"][environ["PATH_INFO"]] += 1
            if plan["kind"] == "none" or environ["REQUEST_METHOD"] not in plan.get("methods", [environ["REQUEST_METHOD"]]):
                return "none"
            if plan.get("contains", "") not in path:
                return "none"
            self.seen += 1
            if self.seen % int(plan.get("every", 1)):
                return "none"
            self.counts["broken"] += 1
            return str(plan["kind"])

    def told(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            if environ["REQUEST_METHOD"] == "POST":
                self.plan = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self.clear()
            body = json.dumps(self.counts).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def cut(environ: dict[str, Any]) -> Iterable[bytes]:
    """End the connection at once, as a dying load balancer does; unread bytes make it a reset."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


class Silent(WSGIRequestHandler):
    """No line on standard error for every request, and connections that are kept, as object stores do."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None: ...


def main() -> None:
    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    print(server.server_port, flush=True)
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
