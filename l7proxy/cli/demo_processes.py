"""The processes that `l7proxy demo` starts: asked over HTTP whether they are ready, and ended with it."""

import contextlib
import http.client
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

READY_SECONDS = 15.0
ENDING_SECONDS = 3.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Children:
    """Started processes; `end` leaves none of them."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def spawn(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a program whose output goes to `log`; raises OSError when it cannot be run."""
        with log.open("wb") as output, _uninterrupted():
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            self._running.append(child)
        return child

    def end(self) -> None:
        """Ends them; the second signal says not to wait for idle connections."""
        for patience in (ENDING_SECONDS / 10, ENDING_SECONDS):
            for child in self._running:
                if child.poll() is None:
                    child.terminate()
            end = time.monotonic() + patience
            for child in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(end - time.monotonic(), 0.01))
        for child in self._running:
            if child.poll() is None:
                child.kill()
                child.wait()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the demo: the handler of the signals `ENDING`."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts the end of the demo off to the end of the block: a child that nobody has noted down would outlive it."""
    came: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number in ENDING:
            signal.signal(number, interrupt)
    if came:
        raise KeyboardInterrupt


def ask(port: int, path: str) -> int:
    """Returns the status of one request, 0 when there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def wait(ready: Callable[[], bool]) -> bool:
    """Waits until `ready()`, READY_SECONDS at most; says whether it is."""
    end = time.monotonic() + READY_SECONDS
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
