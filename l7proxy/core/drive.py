"""A task that begins at once and can be woken without a turn of the event loop.

`asyncio.Task` waits for the loop before its first step and after each future, and enters itself into a Python WeakSet:
together a sixth of what a request may cost (docs/decisions.md). This is what asyncio's documentation calls a task of a
third party: `asyncio.current_task`, `asyncio.timeout` and cancellation work as they do in any other.
"""

import asyncio
from asyncio import tasks
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiter(asyncio.Future[T], Generic[T]):
    """A future whose waiting Drive goes on inside `resolve`; whoever else waits is woken by the loop as usual."""

    drive: "Drive | None" = None

    def resolve(self, value: T) -> None:
        """Sets the result and runs the waiting Drive up to its next wait; the last thing that a callback does."""
        drive, self.drive = self.drive, None
        super().set_result(value)
        if drive is not None:
            if tasks.current_task(self.get_loop()) is None:
                drive.step(None)
            else:
                self.get_loop().call_soon(drive.step, None)

    def set_exception(self, error: type | BaseException) -> None:
        super().set_exception(error)
        self._wake_later()

    def cancel(self, msg: object = None) -> bool:
        cancelled = super().cancel(msg)
        self._wake_later()
        return cancelled

    def _wake_later(self) -> None:
        drive, self.drive = self.drive, None
        if drive is not None:
            self.get_loop().call_soon(drive.wake, self)


class Drive:
    """Runs a coroutine whose result nobody awaits.

    The attributes with a leading underscore are those of asyncio.Task that anyio reads.
    """

    __slots__ = ("_coroutine", "_loop", "_context", "_fut_waiter", "_must_cancel", "_cancels", "__weakref__")

    def __init__(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._context = copy_context()
        self._fut_waiter: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancels = 0

    def start(self) -> None:
        """Runs up to the first wait; from inside another task it begins with the next turn of the loop."""
        if tasks.current_task(self._loop) is None:
            self.step(None)
        else:
            self._loop.call_soon(self.step, None)

    def done(self) -> bool:
        """Whether the coroutine has ended."""
        return self._coroutine.cr_frame is None  # type: ignore[attr-defined]

    def cancel(self, msg: object = None) -> bool:
        """Throws CancelledError into the coroutine, at its current or next wait."""
        if self.done():
            return False
        self._cancels += 1
        if self._fut_waiter is None or not self._fut_waiter.cancel(msg):
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        """The number of cancellations that were asked for and not taken back."""
        return self._cancels

    def uncancel(self) -> int:
        """Takes one cancellation back, as `asyncio.timeout` does."""
        self._cancels = max(self._cancels - 1, 0)
        return self._cancels

    def get_coro(self) -> Coroutine[Any, Any, None]:
        return self._coroutine

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def get_name(self) -> str:
        return "request"

    def step(self, error: BaseException | None) -> None:
        """Runs the coroutine up to its next wait, with `error` thrown into it."""
        coroutine, loop = self._coroutine, self._loop
        if self._must_cancel:
            self._must_cancel = False
            if not isinstance(error, asyncio.CancelledError):
                error = asyncio.CancelledError()
        self._fut_waiter = None
        tasks._enter_task(loop, self)  # type: ignore[arg-type]
        try:
            if error is None:
                future = self._context.run(coroutine.send, None)
            else:
                future = self._context.run(coroutine.throw, error)
        except (StopIteration, asyncio.CancelledError):
            return
        except Exception as failure:
            loop.call_exception_handler({"message": "a request's task failed", "exception": failure})
            return
        finally:
            tasks._leave_task(loop, self)  # type: ignore[arg-type]
            # Its traceback leads to this frame: a cycle would outlive the request until the collector comes.
            error = None
        if future is None:
            # A bare yield, as in asyncio.sleep(0).
            loop.call_soon(self.step, None)
            return
        future._asyncio_future_blocking = False
        self._fut_waiter = future
        if type(future) is Waiter:
            future.drive = self
        else:
            future.add_done_callback(self.wake)
        if self._must_cancel and future.cancel():
            self._must_cancel = False

    def wake(self, future: "asyncio.Future[Any]") -> None:
        """Goes on after a future that has ended."""
        try:
            future.result()
        except BaseException as error:
            self.step(error)
        else:
            self.step(None)
