"""A sidecar whose configuration is changed while it runs; a route that answers with its revision tells what is live."""

import os
import time
from http.client import HTTPConnection, HTTPException

from bench.contenders import L7PROXY, Proxy, Setup
from bench.lab import Lab
from bench.process import BenchError

MARKER = """---
apiVersion: l7proxy.io/v1
kind: Route
metadata: {name: marker}
spec:
  hosts: [marker.bench]
  directResponse: {status: 200, body: "revision 0"}
"""


class Live:
    """l7proxy with a marker route; `reload` changes the file and waits until the change answers."""

    def __init__(self, lab: Lab, setup: Setup, label: str = "l7proxy", more: str = "") -> None:
        self.proxy: Proxy = L7PROXY.start(
            lab, Setup(setup.chain, setup.telemetry, setup.tls, setup.http2, MARKER + more), label
        )
        self._text = self.proxy.config.read_text()
        self.revision = 0
        self._expect(0, 5)

    def change(self) -> None:
        """Replaces the file as an editor does: the new one is complete when it appears."""
        self.revision += 1
        new = self.proxy.config.with_suffix(".new")
        new.write_text(self._text.replace('"revision 0"', f'"revision {self.revision}"'))
        os.replace(new, self.proxy.config)

    def reload(self, seconds: float = 20) -> float:
        """Changes the file and returns the seconds until the new revision answers."""
        began = time.monotonic()
        self.change()
        self._expect(self.revision, seconds)
        return time.monotonic() - began

    def answering(self) -> int:
        """Returns the revision that is live, or -1 when the marker route does not answer.

        Asked in this process: to start a program fifty times a second beside the load would spoil the load's latency.
        """
        connection = HTTPConnection("127.0.0.1", self.proxy.port, timeout=5)
        try:
            connection.request("GET", "/", headers={"Host": "marker.bench"})
            answer = connection.getresponse()
            words = answer.read().split()
        except (OSError, HTTPException):
            return -1
        finally:
            connection.close()
        return int(words[1]) if answer.status == 200 and len(words) == 2 else -1

    def _expect(self, revision: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (found := self.answering()) != revision:
            if time.monotonic() > end or not self.proxy.process.alive():
                raise BenchError(f"revision {revision} is not live, {found} is:\n{self.proxy.process.tail()}")
            time.sleep(0.02)
