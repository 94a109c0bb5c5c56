"""The Prometheus of `l7proxy demo`: it keeps what both sidecars measure, with the rules that the dashboards read."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from l7proxy.cli.demo_processes import Children, ask, wait

GRAFANA = Path(__file__).parents[2] / "grafana"
"""Dashboards and rules: part of the source, not of the package."""

INTERVAL = "1s"


def start(children: Children, folder: Path, port: int, metrics: Sequence[int]) -> None:
    """Starts it on `port` where it is installed, waits until it is ready and prints what came of it.

    `metrics` are the ports that it scrapes. Configuration, data and log lie in `folder`, which is made.
    """
    program = shutil.which("prometheus")
    if program is None:
        print("demo prometheus: not installed (Debian's package prometheus)", flush=True)
        return
    folder.mkdir()
    log = folder / "log"
    try:
        process = children.spawn(_command(program, folder, port, metrics), log)
    except OSError as error:
        print(f"demo prometheus: does not start: {error}", flush=True)
        return
    if wait(lambda: process.poll() is not None or ask(port, "/-/ready") == 200) and process.poll() is None:
        _say(f"http://127.0.0.1:{port}")
    else:
        last = log.read_text(errors="replace").splitlines()[-1:]
        print(f"demo prometheus: does not start: {''.join(last) or 'no answer'}", flush=True)


def _command(program: str, folder: Path, port: int, metrics: Sequence[int]) -> list[str]:
    targets = [f"127.0.0.1:{number}" for number in metrics]
    config = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(GRAFANA / "rules" / "*.yaml")],
        "scrape_configs": [{"job_name": "l7proxy-demo", "static_configs": [{"targets": targets}]}],
    }
    file = folder / "prometheus.yml"
    # JSON is YAML, and quotes whatever a path has in it.
    file.write_text(json.dumps(config))
    return [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def _say(url: str) -> None:
    print(f"demo prometheus: {url}")
    if GRAFANA.is_dir():
        provisioning = f"GF_PATHS_PROVISIONING={shlex.quote(str(GRAFANA / 'provisioning'))}"
        print("\nWhere Grafana is installed, this shows it on the dashboards of `grafana/`:")
        print(f"  {provisioning} PROMETHEUS_URL={url} grafana server --homepath /usr/share/grafana", flush=True)
