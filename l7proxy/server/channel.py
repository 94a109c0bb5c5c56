"""Calls from a parent process to its worker, over one end of a pair of sockets.

Messages are pickled: both ends are the same program of the same user, and nobody else holds the sockets.
"""

import asyncio
import itertools
import pickle
import socket
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from l7proxy.core.errors import ConfigError

_LENGTH = 8


class WorkerGone(Exception):
    """The worker ended before it answered."""

    def __str__(self) -> str:
        return "a worker died"


class Caller:
    """The parent's end: `await caller.call("name", argument)` returns what the worker's function returns.

    Raises ConfigError or ValueError where the worker did, RuntimeError with the text of other errors, and WorkerGone.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.gone = asyncio.get_running_loop().create_task(self._listen())
        """Ends when the worker is gone."""

    async def call(self, name: str, *arguments: Any) -> Any:
        if self.gone.done():
            raise WorkerGone
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            _send(self._writer, (number, name, arguments))
            return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Hangs up, which ends the worker."""
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while True:
                number, error, result = await _receive(self._reader)
                future = self._waiting.get(number)
                if future is None or future.done():
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        except (OSError, EOFError):
            pass
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(WorkerGone())


async def connect(sock: socket.socket) -> Caller:
    """Returns the parent's end of a channel."""
    return Caller(*await asyncio.open_unix_connection(sock=sock))


async def answer(sock: socket.socket, functions: Callable[[str], Callable[..., Any]]) -> None:
    """Answers the parent's calls, each in a task of its own, until it hangs up."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    tasks: set[asyncio.Task[None]] = set()

    async def run(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        error: Exception | None = None
        result: Any = None
        try:
            said = functions(name)(*arguments)
            result = await said if isawaitable(said) else said
        except (ConfigError, ValueError) as mistake:
            error = mistake
        except Exception as failure:
            error = RuntimeError(f"{type(failure).__name__}: {failure}")
        _send(writer, (number, error, result))

    try:
        while True:
            task = asyncio.get_running_loop().create_task(run(*await _receive(reader)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (OSError, EOFError):
        pass
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(len(data).to_bytes(_LENGTH, "big") + data)


async def _receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    return pickle.loads(await reader.readexactly(size))
