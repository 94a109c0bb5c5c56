"""One request at a time with curl: for proofs, never for figures."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; status 0 means that none came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    error: str = ""


def ask(url: str, *options: str, certs: Path | None = None, identity: str | None = "client") -> Answer:
    """Sends one GET; over TLS with the certificate of `identity` from `certs`, or with none at all."""
    command = ["curl", "-sSi", "--max-time", "5", *options]
    if certs is not None:
        command += ["--cacert", str(certs / "ca.crt")]
        if identity is not None:
            command += ["--cert", str(certs / f"{identity}.pem")]
    done = subprocess.run([*command, url], capture_output=True, timeout=15, check=False)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if done.returncode != 0 or len(lines[0].split()) < 2:
        return Answer(0, {}, b"", done.stderr.decode("utf-8", "replace").strip())
    fields = (line.partition(":") for line in lines[1:])
    return Answer(int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}, body)


def fetch(url: str) -> bytes:
    """Returns the body of a 200, or raises BenchError."""
    answer = ask(url)
    if answer.status != 200:
        raise BenchError(f"{url}: {answer.status} {answer.error}")
    return answer.body
