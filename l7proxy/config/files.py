"""Configuration from files and folders that are watched.

What is watched is what `stat` tells of every file, through symbolic links, a few times a second: that costs tens of
microseconds, needs no thread, and sees what change notification misses or reports too early (kubelet's swap of a link,
an editor's rename, a network file system). A change is taken up once two looks in a row see the same.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence

from l7proxy.config.load import Loader, expand
from l7proxy.config.model import Model
from l7proxy.config.overrides import NONE, Overrides
from l7proxy.core.errors import ConfigError
from l7proxy.core.slices import between, finish

INTERVAL = 0.2
"""Seconds between two looks."""

Seen = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]
"""The state of each file of the configuration, and of each that it refers to: what was refused for a certificate may be
right once that is."""


class Files:
    """A source of models: `load` gives the first, `updates` one for each change, or the error that a change brought.

    An update never stops the watching: after an error the files are looked at again.
    """

    def __init__(self, paths: Sequence[str], overrides: Overrides = NONE, interval: float = INTERVAL) -> None:
        self._paths = list(paths)
        self._overrides = overrides
        self._interval = interval
        self._loader = Loader()
        self._seen: Seen | None = None
        self._now = asyncio.Event()

    def load(self) -> Model:
        """Returns the model that the files describe now; raises ConfigError. Changes from here on are `updates`."""
        seen = self._look()
        model = finish(self._loader.steps(self._paths, self._overrides))
        self._seen = self._complete(seen)
        return model

    async def updates(self) -> AsyncIterator[Model | ConfigError]:
        """Yields a model, or why there is none, whenever files have changed or `reload` was called."""
        before = self._look()
        while True:
            asked = await self._pause()
            now = self._look()
            if not asked and (now == self._seen or now != before):
                # Nothing new, or something that is still being written.
                before = now
                continue
            try:
                update: Model | ConfigError = await between(self._loader.steps(self._paths, self._overrides))
            except ConfigError as error:
                update = error
            before = self._seen = self._complete(now)
            yield update

    def reload(self) -> None:
        """Takes up the files at once, whether or not they seem to have changed (SIGHUP)."""
        self._now.set()

    def accept(self, version: str) -> None:
        """The update went live: nothing is left to do."""

    def reject(self, version: str, error: Exception) -> None:
        """The update was refused: the next one will be another."""

    async def _pause(self) -> bool:
        """Sleeps until the next look; True when `reload` cut it short."""
        try:
            await asyncio.wait_for(self._now.wait(), self._interval)
        except TimeoutError:
            return False
        self._now.clear()
        return True

    def _look(self) -> Seen:
        files = {file: _state(file) for file in expand(self._paths, [])}
        return files, {file: _state(file) for file in self._loader.files}

    def _complete(self, seen: Seen) -> Seen:
        """Adds the files that the configuration refers to, which are only known once it has been read."""
        return seen[0], self._look()[1]


def _state(file: str) -> tuple[int, ...]:
    """Returns what changes when a file is written, replaced or made unreadable; () when there is no file."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode
