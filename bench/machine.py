"""The facts that figures depend on: cores, kernel, versions."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench.contenders import ENVOY_BINARY
from bench.process import LOAD_CORE, PROXY_CORE


def facts() -> dict[str, str]:
    """Returns what a reader needs to know to compare this run with another."""
    return {
        "processor": _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()),
        "cores": f"{os.cpu_count()}; proxies on core {PROXY_CORE}, load generator and backend on core {LOAD_CORE}",
        "memory": _first(r"MemTotal:\s*(.+)", Path("/proc/meminfo").read_text()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "l7proxy": f"{version('l7proxy')} ({_says(r'(.*)', 'git', 'describe', '--always', '--dirty')})",
        "envoy": _says(r"/(\d+\.\d+\.\d+)/", str(ENVOY_BINARY), "--version"),
        "nginx": _says(r"nginx/(\S+)", "nginx", "-v"),
        "haproxy": _says(r"version (\S+)", "haproxy", "-v"),
        "naive": f"hypercorn {version('hypercorn')}, httpx {version('httpx')}, uvloop {version('uvloop')}",
        "openssl": _says(r"OpenSSL (\S+)", "openssl", "version"),
        "wrk": _says(r"wrk (\S+)", "wrk", "-v"),
        "h2load": _says(r"nghttp2/(\S+)", "h2load", "--version"),
    }


def _says(pattern: str, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return _first(pattern, done.stdout + done.stderr)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else "unknown"
