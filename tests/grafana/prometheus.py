"""A real Prometheus that scrapes and evaluates every second, and what it says."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grafana.live import ask
from tests.support.net import Address, free_address, wait_for
from tests.support.process import Process

Rows = list[tuple[dict[str, str], float]]


class Prometheus:
    """Runs with `rules` loaded, on a free port, with its data in `folder`."""

    def __init__(self, folder: Path, targets: Sequence[Address], rules: Path) -> None:
        self.address = free_address()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": "sidecars",
                    "static_configs": [{"targets": [f"{host}:{port}" for host, port in targets]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        listen = f"--web.listen-address={self.address[0]}:{self.address[1]}"
        self.process = Process("prometheus", [*command, listen, "--enable-feature=exemplar-storage"], folder)
        try:
            self.process.wait_until(lambda: len(self.query("up == 1")) == len(targets), timeout=30)
        except BaseException:
            self.process.popen.kill()
            raise

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Returns the data of an answer of the API."""
        return ask(f"http://{self.address[0]}:{self.address[1]}", path, **parameters)

    def query(self, expression: str) -> Rows:
        """Returns the labels and values that an expression has now; nothing while Prometheus starts."""
        try:
            result = self.ask("query", query=expression)["result"]
        except OSError:
            return []
        return [(row["metric"], float(row["value"][1])) for row in result]

    def value(self, expression: str) -> float:
        """Returns the one value of an expression, 0 where there is none."""
        rows = self.query(expression)
        assert len(rows) < 2, rows
        return rows[0][1] if rows else 0.0

    def has_data(self, expression: str) -> bool:
        """Says whether an expression has any value that is a number."""
        return any(math.isfinite(value) for _, value in self.query(expression))

    def wait_for_rules(self) -> None:
        """Waits until every rule has seen what is scraped now, those too that read what other groups record."""
        longest_chain = 3
        due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=longest_chain)

        def evaluated() -> bool:
            times = [group["lastEvaluation"] for group in self.ask("rules")["groups"]]
            return all(datetime.datetime.fromisoformat(when) > due for when in times)

        wait_for(evaluated, 30)
