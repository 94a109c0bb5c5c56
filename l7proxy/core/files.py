"""Files that others write: opened without waiting for anybody, and never read without end."""

import errno
import os
import stat
from io import FileIO


def open_regular(path: str) -> FileIO:
    """Opens a file for reading; raises OSError, also for what is not a regular file.

    A pipe that nobody writes would hold the event loop for ever, and a device may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb", buffering=0)


def size_of(file: FileIO) -> int:
    """Returns the size in bytes, as it is now."""
    return os.fstat(file.fileno()).st_size
