"""Reads a Dockerfile: enough of it to lint ours and to carry out its steps in a fresh root."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One instruction: `RUN`, `COPY` and so on, and the rest of its line with continuations joined."""

    word: str
    rest: str

    @property
    def exec_form(self) -> list[str]:
        """Returns the JSON list of an exec form; raises ValueError for a shell form."""
        return [str(part) for part in json.loads(self.rest[self.rest.index("[") :])]


class Stage(NamedTuple):
    """What stands between two FROM lines."""

    image: str
    name: str
    steps: list[Step]

    def last(self, word: str) -> Step:
        """Returns the last instruction of a kind; raises IndexError when there is none."""
        return [step for step in self.steps if step.word == word][-1]

    @property
    def environment(self) -> dict[str, str]:
        pairs = [part for step in self.steps if step.word == "ENV" for part in shlex.split(step.rest)]
        return dict(pair.split("=", 1) for pair in pairs)


def read(path: Path) -> list[Stage]:
    """Returns the stages in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", text)
    stages: list[Stage] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stages.append(Stage(image, name, []))
        else:
            stages[-1].steps.append(Step(word, rest.strip()))
    return stages
