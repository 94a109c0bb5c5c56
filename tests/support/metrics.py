"""Reads Prometheus text into numbers."""

import re
import urllib.request
from collections.abc import Iterator

from tests.support.net import Address

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*?)\})? (\S+)(?: .*)?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Samples:
    """What one scrape said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = list(_parse(text))

    def __call__(self, name: str, **labels: str) -> float:
        """Returns the sum over all series of `name` that carry at least `labels`; 0 when there are none."""
        return sum(value for key, have, value in self._samples if key == name and labels.items() <= have.items())

    def series(self, name: str, **labels: str) -> list[dict[str, str]]:
        """Returns the labels of every series of `name` that carries at least `labels`."""
        return [have for key, have, _ in self._samples if key == name and labels.items() <= have.items()]

    def names(self) -> set[str]:
        """Returns the names of all series."""
        return {key for key, _, _ in self._samples}


def scrape(address: Address, path: str = "/metrics") -> Samples:
    """Fetches and parses one page of metrics."""
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}{path}", timeout=5) as answer:
        return Samples(answer.read().decode())


def _parse(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    # The format knows one line end: a carriage return may stand in a label.
    for line in text.split("\n"):
        if line and not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, f"not a sample: {line!r}"
            yield match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])
