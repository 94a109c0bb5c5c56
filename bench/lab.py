"""The laboratory of one run: a temporary folder with the certificates, the backend, the sink, the compiled tools."""

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import certs
from bench.client import fetch
from bench.load import Load, wrk
from bench.parts.sink import Sink
from bench.process import LOAD_CORE, BenchError, Process, free_port, spawn, wait_for_port
from bench.template import render

PARTS = Path(__file__).parent / "parts"
SIZES = {"1k": 1024, "100k": 100 * 1024}
GRPC_REQUEST = b"\0\0\0\0\x0c\x0a\x0a0123456789"


class Lab:
    """Starts what every scenario needs when entered, and ends and removes all of it when left."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="l7proxy-bench-"))
        self.folder.chmod(0o755)
        self.certs = self.folder / "certs"
        self.certs.mkdir()
        certs.issue(self.certs)
        self._processes: list[Process] = []
        self.sink = Sink()
        # The kernel completes connections to a listener that nobody accepts from: an application that never answers.
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.slow_port: int = self._silent.getsockname()[1]
        self.http_port, self.grpc_port = free_port(), free_port()
        self._start_backend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.stop()
        self.sink.stop()
        self._silent.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, process: Process) -> Process:
        """Has `process` stopped at the end of the run at the latest."""
        self._processes.append(process)
        return process

    def _start_backend(self) -> None:
        www = self.folder / "www"
        (www / "bench.Echo").mkdir(parents=True)
        for name, size in SIZES.items():
            (www / name).write_bytes(b"x" * size)
        (www / "1m").write_bytes(b"x" * 2**20)
        (www / "bench.Echo" / "Unary").write_bytes(GRPC_REQUEST)
        (self.folder / "grpc-request").write_bytes(GRPC_REQUEST)
        values: dict[str, str | int | bool] = {
            "folder": str(self.folder),
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
        }
        config = self.folder / "backend.conf"
        config.write_text(render("backend.conf", values))
        command = ["nginx", "-c", str(config), "-e", str(self.folder / "backend.log")]
        self._backend = self.keep(spawn("backend", command, (LOAD_CORE,), self.folder / "backend.out"))
        wait_for_port(self._backend, self.http_port)
        for name, size in SIZES.items():
            if len(fetch(f"http://127.0.0.1:{self.http_port}/{name}")) != size:
                raise BenchError(f"the backend does not serve {name}")

    def direct(self, path: str, seconds: int) -> Load:
        """Measures the load generator and the backend alone, both on the load core: the ceiling of every figure."""
        return wrk(f"http://127.0.0.1:{self.http_port}/{path}", 32, seconds)

    @cached_property
    def ws_port(self) -> int:
        """The port of a WebSocket echo application, started on first use."""
        return self._application("ws_echo")

    @cached_property
    def grpc_app_port(self) -> int:
        """The port of a real gRPC application, started on first use."""
        return self._application("grpc_app")

    def _application(self, module: str) -> int:
        port = free_port()
        command = [sys.executable, "-m", f"bench.parts.{module}", str(port)]
        output = self.folder / f"{module}.out"
        process = self.keep(spawn(module, command, (LOAD_CORE,), output, cwd=PARTS.parent.parent))
        wait_for_port(process, port)
        return port

    def client_certificate(self, identity: str = "client") -> Mapping[str, str]:
        """Returns the environment that makes wrk and h2load present the certificate of `identity`."""
        pem = str(self.certs / f"{identity}.pem")
        return {"LD_PRELOAD": str(self._shim), "BENCH_CERT": pem}

    @cached_property
    def _shim(self) -> Path:
        return self._compile("clientcert.c", "clientcert.so", "-shared", "-fPIC", "-ldl", "-lssl")

    @cached_property
    def handshaker(self) -> Path:
        """The compiled generator of TLS handshakes."""
        return self._compile("handshakes.c", "handshakes", "-pthread", "-lssl", "-lcrypto")

    def _compile(self, source: str, target: str, *options: str) -> Path:
        output = self.folder / target
        command = ["cc", "-O2", "-Wall", "-o", str(output), str(PARTS / source), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise BenchError(f"{source} does not compile (libssl-dev is needed):\n{done.stderr}")
        return output
