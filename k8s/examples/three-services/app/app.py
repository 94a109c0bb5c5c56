"""A service that stands for yours: it says who it is, who calls by its sidecar's word, and what the next one answered.

It knows nothing of TLS, retries or metrics. Others are called by plain HTTP through `HTTP_PROXY`, which urllib heeds.
"""

import json
import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        told = {"service": os.environ["NAME"], "caller": self.headers.get("x-forwarded-client-cert"), "next": None}
        status = 200
        if "CALLS" in os.environ:
            status, told["next"] = ask(os.environ["CALLS"] + self.path)
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The sidecar keeps the log."""


def ask(url: str) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return 200, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("x-l7proxy-error")
    except OSError as error:
        return 502, str(error)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
