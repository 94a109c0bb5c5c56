"""Memory that is given back: glibc keeps what was freed below anything that still lives.

A sidecar that once held 300 MiB for slow clients would keep them long after the last of these has left.
"""

_WORTH = 16 * 1024 * 1024
"""Bytes by which what is held must fall before the allocator is asked: it walks all that is free, which takes time."""


class Trimmer:
    """Has the C library give free memory back each time that the bytes held have fallen by a good deal."""

    def __init__(self) -> None:
        self._peak = 0

    def look(self, held: int) -> None:
        """Takes note of the bytes that are held now; to be called a few times a second."""
        if held > self._peak:
            self._peak = held
        elif self._peak - held > _WORTH:
            self._peak = held
            _trim()


def _trim() -> None:
    # Loading it takes some milliseconds, which most processes never need.
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        # Other C libraries give back as they free (musl).
        return
