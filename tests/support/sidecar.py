"""A real sidecar process on free ports, and the same core under other ASGI servers."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.client import Client
from tests.support.message import Message
from tests.support.metrics import Samples, scrape
from tests.support.net import Address, accepts, free_address, wait_for
from tests.support.process import Process

Document = str | Mapping[str, Any]

# What a healthy sidecar never writes to stderr.
NOISE = (
    *("Traceback (most recent call last)", "internal error", "never retrieved", "was never awaited", "ResourceWarning"),
    *("Fatal error on", "Task was destroyed"),
)


def route(name: str, *, policies: Mapping[str, Any] | None = None, hosts: Sequence[str] = (), **spec: Any) -> Document:
    """Returns a Route document; `spec` is its spec (`upstream`, `matches`, ...)."""
    body: dict[str, Any] = {**spec}
    if hosts:
        body["hosts"] = list(hosts)
    if policies is not None:
        body["policies"] = policies
    if not body.keys() & {"upstream", "split", "redirect", "directResponse"}:
        body["upstream"] = "app"
    return {"apiVersion": "l7proxy.io/v1", "kind": "Route", "metadata": {"name": name}, "spec": body}


def upstream(name: str, *endpoints: Address, **spec: Any) -> Document:
    """Returns an Upstream document."""
    body = {"endpoints": [f"{host}:{port}" for host, port in endpoints], **spec}
    return {"apiVersion": "l7proxy.io/v1", "kind": "Upstream", "metadata": {"name": name}, "spec": body}


def istio(kind: str, *, name: str = "policy", **spec: Any) -> Document:
    """Returns a document of Istio's security API."""
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


class Sidecar:
    """`l7proxy run -c` with every listener on a free port of loopback.

    `documents` are YAML texts or mappings beside the Sidecar document, whose spec is made here and overlaid with `spec`
    (camelCase keys; a mapping is merged, None removes). `args` are added to the command line.
    """

    def __init__(
        self,
        folder: Path,
        *documents: Document,
        app: Address | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        server: str = "l7proxy",
        name: str = "sidecar",
        **spec: Any,
    ) -> None:
        self.folder = folder
        self.name = name
        self.quiet = True
        """Whether stderr is to be free of tracebacks; stock servers write one for every answer that is cut short."""
        self.inbound, self.outbound = free_address(), free_address()
        self.admin, self.metrics_at = free_address(), free_address()
        self.log = folder / f"{name}.access.log"
        self.config = folder / f"{name}.yaml"
        self._spec: dict[str, Any] = {
            "service": {"name": name},
            "inbound": {"listen": _text(self.inbound), "app": f"http://{_text(app)}" if app else None},
            "outbound": {"listen": _text(self.outbound)},
            "admin": {"listen": _text(self.admin)},
            "metrics": {"listen": _text(self.metrics_at)},
            "accessLog": {"path": str(self.log)},
            "drain": {"quiet": "0s"},
        }
        self._spec = _clean(_merge(self._spec, spec))
        self.configure(*documents)
        if server == "l7proxy":
            command = [sys.executable, "-m", "l7proxy", "run", "-c", str(self.config), *args]
        else:
            command = [sys.executable, "-m", "tests.support.stock", server, str(self.inbound[1]), str(self.config)]
        root = str(Path(__file__).parents[2])
        self.process = Process(name, command, folder, {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **(env or {})})
        listeners = ["inbound", "outbound", "admin", "metrics"] if server == "l7proxy" else ["inbound"]
        addresses = [self._listen(key) for key in listeners if key in self._spec]
        try:
            self.process.wait_until(lambda: all(map(accepts, addresses)))
            if "metrics" in listeners and "metrics" in self._spec:
                # The kernel accepts before the process serves: an answer is what says that it does.
                self.metrics()
        except BaseException:
            self.process.popen.kill()
            raise

    def configure(self, *documents: Document, **spec: Any) -> None:
        """Writes the configuration in one step, as an editor or a controller would; `spec` overlays the Sidecar's."""
        self._spec = _clean(_merge(self._spec, spec))
        sidecar = {
            "apiVersion": "l7proxy.io/v1",
            "kind": "Sidecar",
            "metadata": {"name": self.name},
            "spec": self._spec,
        }
        texts = [doc if isinstance(doc, str) else yaml.safe_dump(doc, sort_keys=False) for doc in (sidecar, *documents)]
        draft = self.config.with_suffix(".draft")
        draft.write_text("---\n".join(texts))
        os.replace(draft, self.config)

    def reconfigure(self, *documents: Document, timeout: float = 5.0, **spec: Any) -> None:
        """Writes the configuration and waits until it is live."""
        before = self.metrics()("l7proxy_config_version")
        self.configure(*documents, **spec)
        wait_for(
            lambda: self.metrics()("l7proxy_config_version") != before,
            timeout,
            lambda: f"the configuration did not go live:\n{self.process.stderr}",
        )

    def client(self, **options: Any) -> Client:
        """Opens a connection to the inbound listener."""
        return Client(self.inbound, **options)

    def get(self, target: str = "/", host: str = "test", **headers: str) -> Message:
        """Sends one GET to the inbound listener on a connection of its own."""
        with self.client() as client:
            return client.get(target, host, **headers)

    def metrics(self) -> Samples:
        """Scrapes the metrics listener."""
        return scrape(self.metrics_at)

    def log_lines(self, count: int = 1, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Returns the lines of the access log once there are at least `count`."""
        wait_for(lambda: len(self._lines()) >= count, timeout, lambda: f"{len(self._lines())} log lines, not {count}")
        return [json.loads(line) for line in self._lines()]

    def check_quiet(self) -> None:
        """Fails when stderr holds a traceback, or what asyncio says of a task that nobody waited for."""
        noise = [word for word in NOISE if word in self.process.stderr] if self.quiet else []
        assert not noise, f"stderr of {self.name}:\n{self.process.stderr[-8000:]}"

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Sends a signal, waits for the end and fails on noise in stderr; returns the exit status."""
        if self.process.popen.poll() is None:
            # The drain of an idle sidecar is over at once; a second signal ends one that still has connections.
            self.process.kill(number)
            try:
                status = self.process.popen.wait(0.5)
            except Exception:
                status = self.process.stop(number, timeout)
        else:
            status = self.process.popen.returncode
        self.check_quiet()
        return status

    def _listen(self, key: str) -> Address:
        host, _, port = str(self._spec[key]["listen"]).rpartition(":")
        return host.strip("[]").replace("0.0.0.0", "127.0.0.1"), int(port)

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, Mapping):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items() if inner is not None}
    return value
