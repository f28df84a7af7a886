"""A double of Alluxio's S3 proxy: it serves S3 under /api/v1/s3, believes any user, and knows no conditional put.

It passes requests on to a real S3 server, signed anew, as Alluxio itself would read and write its under-store.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import requests
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

PREFIX = "/api/v1/s3"
KEPT = ("range", "content-type", "content-md5")


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint = key = secret = ""

    def serve(self) -> None:
        body = self._body()
        if not self.path.startswith(PREFIX):
            self.send_error(404)
            return
        answer = self._forward(self.path.removeprefix(PREFIX), body)
        self.send_response(answer.status_code)
        for name in ("content-type", "etag", "last-modified", "content-range", "accept-ranges"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        length = answer.headers.get("content-length", "0") if self.command == "HEAD" else str(len(answer.content))
        self.send_header("content-length", length)
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

    def _body(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        return unchunked(raw) if "aws-chunked" in (self.headers.get("content-encoding") or "") else raw

    def _forward(self, path: str, body: bytes) -> requests.Response:
        headers = {name: value for name, value in self.headers.items() if name.lower() in KEPT}
        request = AWSRequest(self.command, self.endpoint + path, data=body, headers=headers)
        who = Credentials(self.key, self.secret)
        request.headers["host"] = urlsplit(self.endpoint).netloc
        S3SigV4Auth(who, "s3", "us-east-1").add_auth(request)
        return requests.request(self.command, self.endpoint + path, data=body, headers=dict(request.headers), timeout=60)

    def log_message(self, *words: object) -> None:
        """Quiet."""


def unchunked(raw: bytes) -> bytes:
    """A body that came as aws-chunked: size;signature, content, ..., 0, trailers."""
    content, at = b"", 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].split(b";")[0], 16)
        if not size:
            return content
        content += raw[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


if __name__ == "__main__":
    _, port, Proxy.endpoint, Proxy.key, Proxy.secret = sys.argv
    ThreadingHTTPServer(("127.0.0.1", int(port)), Proxy).serve_forever()
