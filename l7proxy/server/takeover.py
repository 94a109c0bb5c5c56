"""How a new process takes the listening sockets over from the one that serves, so that no connection is ever refused.

The old one listens on a Unix socket that only its own user can reach. Who connects there gets every listening socket
(SCM_RIGHTS), begins to serve, and says so; from then on the old one accepts nothing more and drains. A new one that
fails on the way changes nothing: the old one goes on.
"""

import asyncio
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b

import msgspec

from l7proxy.server.listeners import Sockets

_AT_ONCE = 100
"""Descriptors in one message; the kernel takes 253."""
_PATIENCE = 5.0
"""Seconds that the other side may take for a message."""
_SERVING = b"S"
_CREDENTIALS = struct.Struct("3i")

Given = dict[tuple[str, str], list[socket.socket]]
"""Listening sockets by the name of the listener and its address."""


def usual_path(key: str) -> str:
    """Returns where those who are started with the same arguments meet; raises OSError when others could reach it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = os.path.join(base, f"l7proxy-{os.geteuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(f"{folder} is not a folder of this user alone")
    return os.path.join(folder, f"{blake2b(key.encode(), digest_size=8).hexdigest()}.sock")


class Predecessor:
    """The process that served until now, and the sockets that it gave."""

    def __init__(self, sock: socket.socket, sockets: Given) -> None:
        self._sock = sock
        self.sockets = sockets

    def relieve(self) -> None:
        """Tells it that we serve; what it gave and we have no use for is closed with the process that gave it."""
        with suppress(OSError):
            self._sock.sendall(_SERVING)
        self._sock.close()


def ask(path: str) -> Predecessor | None:
    """Asks the process that serves for its sockets; None when there is none. Raises OSError when it gives none."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(_PATIENCE)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    if not _is_ours(sock):
        raise OSError(f"{path} belongs to another user")
    (size,) = struct.unpack("!I", _read(sock, 4))
    listeners: list[tuple[str, str, int]] = msgspec.json.decode(_read(sock, size), type=list[tuple[str, str, int]])
    descriptors: list[int] = []
    total = sum(count for _, _, count in listeners)
    while len(descriptors) < total:
        data, numbers, _, _ = socket.recv_fds(sock, 1, _AT_ONCE)
        if not data:
            raise OSError(f"the process at {path} did not give its sockets")
        descriptors += numbers
    sockets: Given = {}
    for name, address, count in listeners:
        sockets[name, address] = [socket.socket(fileno=number) for number in descriptors[:count]]
        del descriptors[:count]
    return Predecessor(sock, sockets)


class Offer:
    """Gives the listening sockets to whoever takes over, and calls `taken` with its process id once that one serves."""

    def __init__(self, path: str, sockets: Sockets, addresses: Mapping[str, str], taken: Callable[[int], None]) -> None:
        self._path = path
        self._sockets = [(name, addresses[name], opened) for name, opened in sockets.items()]
        self._taken = taken
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(socket.AF_UNIX)
        # Ours replaces that of a predecessor in one step.
        draft = f"{path}.{os.getpid()}"
        before = os.umask(0o077)
        try:
            self._sock.bind(draft)
            self._sock.listen()
            os.rename(draft, path)
        finally:
            os.umask(before)
        self._inode = os.stat(path).st_ino
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Offers nothing any more."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._sock.close()
        with suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._sock.accept()
            task = self._loop.create_task(self._give(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _give(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, TimeoutError):
            if not _is_ours(sock):
                return
            # One at a time: of two that served nobody would ever relieve the first.
            async with self._turn:
                if self._sock.fileno() < 0:
                    return
                # A few hundred bytes into an empty buffer: this does not block.
                sock.settimeout(_PATIENCE)
                listeners = [(name, address, len(opened)) for name, address, opened in self._sockets]
                header = msgspec.json.encode(listeners)
                sock.sendall(struct.pack("!I", len(header)) + header)
                descriptors = [one.fileno() for _, _, opened in self._sockets for one in opened]
                for at in range(0, len(descriptors), _AT_ONCE):
                    socket.send_fds(sock, [b"F"], descriptors[at : at + _AT_ONCE])
                sock.setblocking(False)
                # To compile a large configuration takes a while; an end without a word means that nothing came of it.
                if await self._loop.sock_recv(sock, 1) == _SERVING:
                    self._taken(_peer(sock)[0])


def _is_ours(sock: socket.socket) -> bool:
    return _peer(sock)[1] == os.geteuid()


def _peer(sock: socket.socket) -> Sequence[int]:
    """Returns process and user id of the other end."""
    found: tuple[int, int, int] = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return found


def _read(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise OSError("the process that serves did not give its sockets; another one may be taking over")
    return data
