"""Lines on their way to a file: handed to a thread that may block, so that the event loop never does."""

import contextlib
import os
import select
import stat
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import ClassVar, cast

from l7proxy.core.stats import Counter

MAX_PENDING = 8 * 1024 * 1024
"""Bytes that may wait for a disk or pipe that stands still; what comes after is dropped, and counted."""

STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2, "-": 1}
"""Opening these anew fails on sockets and loses O_APPEND, so their descriptors are used as they are."""

REOPEN = object()
STOP = object()


class LineWriter:
    """Appends whole lines to `path`, in the order given.

    `dropped` counts the lines for which there was no room, `failed` those that the system would not write.

    A thread does the writing. It starts with the first line and ends after `close`; a line that comes later still (from
    a request that began under an older configuration) starts it once more.
    Where other processes write to the same pipe (`shared`), each write is small enough to be whole among theirs.
    Raises OSError when `path` cannot be opened.
    """

    shared: ClassVar[bool] = False

    def __init__(self, path: str, dropped: Counter, failed: Counter) -> None:
        self.path = path
        self._dropped = dropped
        self._failed = failed
        self._queue: SimpleQueue[object] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._put = 0
        self._done = 0
        self._file = open_append(path)

    def write(self, data: bytes, lines: int) -> None:
        """Hands over `data`, which holds `lines` whole lines; call it from one thread only."""
        if self._put - self._done > MAX_PENDING:
            self._dropped.value += lines
            return
        self._put += len(data)
        self._start().put((data, lines))
        if self._closed:
            self.close()

    def reopen(self) -> None:
        """Opens the path anew, behind what was written so far: the old file was moved away."""
        if not self._closed:
            self._start().put(REOPEN)

    def close(self, timeout: float = 0.0) -> bool:
        """Ends the thread once everything is written; waits for that at most `timeout` seconds and says if it was."""
        self._closed = True
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.put(STOP)
        self._file = _shut(self._file)
        thread = self._thread
        if thread is not None and timeout > 0:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _start(self) -> "SimpleQueue[object]":
        queue = self._queue
        if queue is None:
            queue = self._queue = SimpleQueue()
            # A daemon: a pipe that nobody reads must not keep the process alive.
            args = (queue, self._file, self._thread)
            self._file = -1
            self._thread = threading.Thread(target=self._run, args=args, name="lines", daemon=True)
            self._thread.start()
        return queue

    def _run(self, queue: "SimpleQueue[object]", file: int, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            while (item := queue.get()) is not STOP:
                data, lines = (b"", 0) if item is REOPEN else cast(tuple[bytes, int], item)
                try:
                    if item is REOPEN:
                        file = _shut(file)
                    if file < 0:
                        file = open_append(self.path)
                    lost = sum(_write_all(file, piece) for piece in self._pieces(file, data))
                except OSError:
                    lost = lines
                if lost:
                    # A full disk or a reader that went away: later lines may fare better.
                    self._failed.value += lost
                    file = _shut(file)
                self._done += len(data)
        finally:
            _shut(file)

    def _pieces(self, file: int, data: bytes) -> Iterator[bytes]:
        """Yields the data as it is to be written: whole lines of at most PIPE_BUF bytes, if others write there too."""
        at = 0
        if self.shared and len(data) > select.PIPE_BUF and stat.S_ISFIFO(os.fstat(file).st_mode):
            while len(data) - at > select.PIPE_BUF:
                end = data.rfind(b"\n", at, at + select.PIPE_BUF) + 1 or data.find(b"\n", at) + 1 or len(data)
                yield data[at:end]
                at = end
        if data[at:] or not data:
            yield data[at:]


def open_append(path: str) -> int:
    """Opens `path` for lines at its end."""
    stream = STREAMS.get(path)
    if stream is not None:
        return os.dup(stream)
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    # A named pipe opened for writing only would block until somebody reads it.
    pipe = os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)
    return os.open(path, flags | (os.O_RDWR if pipe else os.O_WRONLY), 0o640)


def _shut(file: int) -> int:
    if file >= 0:
        os.close(file)
    return -1


def _write_all(file: int, data: bytes) -> int:
    """Writes and returns how many lines could not be."""
    view = memoryview(data)
    try:
        while view:
            try:
                view = view[os.write(file, view) :]
            except BlockingIOError:
                # Somebody else who holds this descriptor too made it non-blocking.
                ready = select.poll()
                ready.register(file, select.POLLOUT)
                ready.poll()
    except OSError:
        if 0 < len(view) < len(data):
            # End the torn line, so that the next one can be read.
            with contextlib.suppress(OSError):
                os.write(file, b"\n")
        return bytes(view).count(b"\n")
    return 0
