"""A terminal as one page that is drawn anew."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# ECMA-48, and xterm's alternate screen.
_TAKE, _GIVE_BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDS = (b"q", b"Q", b"\x04", b"")


@contextmanager
def screen() -> Iterator[Callable[[list[str], float], bool]]:
    """Takes the terminal, and gives it back as it was.

    Yields a function that shows lines, waits some seconds, and says whether q was pressed meanwhile.
    """
    keys = sys.stdin.isatty()
    settings = termios.tcgetattr(sys.stdin) if keys else None
    write = sys.stdout.write

    def draw(lines: list[str], seconds: float) -> bool:
        size = os.get_terminal_size()
        shown = [f"{line[: size.columns]}{_REST_OF_LINE}" for line in lines[: size.lines]]
        write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)
        sys.stdout.flush()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([sys.stdin] if keys else [], [], [], left)[0] and os.read(sys.stdin.fileno(), 1) in _ENDS:
                return True
        return False

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        if settings is not None:
            tty.setcbreak(sys.stdin)
        write(_TAKE)
        yield draw
    finally:
        write(_GIVE_BACK)
        sys.stdout.flush()
        if settings is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        signal.signal(signal.SIGTERM, previous)
