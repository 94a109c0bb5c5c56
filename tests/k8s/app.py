"""The application of a pod: it tells on stdout what it sees of its sidecar when it starts and when it ends.

`/slow` takes 8 seconds. SIGTERM ends it when the requests under way are answered, after one last call to others.
"""

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OTHERS = "http://10.244.0.1:7000/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(8)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False


def ask(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        print(error)
        return 0


def main() -> None:
    print("at the start:", ask("http://127.0.0.1:15021/ready"), ask(OTHERS), flush=True)
    server = Server(("127.0.0.1", 8080), Handler)

    def end(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    server.serve_forever(0.05)
    print("at the end:", ask(OTHERS), flush=True)
    server.server_close()


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    sys.exit(main())
