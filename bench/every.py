"""A job that is done again and again beside the load."""

import threading
import time
from collections.abc import Callable
from typing import Self

from bench.process import BenchError


class Every:
    """Calls `job` every `seconds` while the block runs; a BenchError of the job leaves the block."""

    def __init__(self, seconds: float, job: Callable[[], object]) -> None:
        self.done = 0
        self._seconds = seconds
        self._job = job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BenchError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._job()
            except BenchError as error:
                self._error = error
                return
            self.done += 1
            self._stop.wait(max(0.0, self._seconds - (time.monotonic() - began)))
