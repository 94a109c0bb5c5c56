"""What a policy is, and all that it may ask for."""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from random import Random
from typing import Any, ClassVar, Protocol, TypeVar, cast

from msgspec import Struct

from l7proxy.core.message import Request, Response
from l7proxy.core.stats import Stats

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


class Keep:
    """What survives a configuration swap: token buckets, pools, ejection state, by key.

    Compilation asks with `get`; `commit` drops what the new configuration no longer asked for, `rollback` what only the
    failed one made. Both return the dropped objects, for the caller to close.
    """

    def __init__(self) -> None:
        self._live: dict[Any, Any] = {}
        self._next: dict[Any, Any] = {}
        self._asked: list[Any] = []

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """Returns the object kept under `key`, from the live configuration or made now."""
        self._asked.append(key)
        if key in self._next:
            return cast(T, self._next[key])
        value: T = self._live[key] if key in self._live else make()
        self._next[key] = value
        return value

    def __contains__(self, key: Any) -> bool:
        """Whether something is live under `key`."""
        return key in self._live

    def of(self, kind: type[T]) -> list[T]:
        """Returns everything of one type that is live."""
        return [value for value in self._live.values() if isinstance(value, kind)]

    def asked(self) -> list[Any]:
        """Returns the keys asked for since this was called last."""
        asked, self._asked = self._asked, []
        return asked

    def renew(self, keys: list[Any]) -> None:
        """Keeps what is live under `keys`: for a part that was not compiled again because it did not change."""
        for key in keys:
            self._next.setdefault(key, self._live[key])

    def commit(self) -> list[Any]:
        """The configuration that was compiled goes live."""
        return [value for value in self.swap() if value is not None]

    def swap(self) -> Iterator[Any]:
        """Does what `commit` does, and tells what is dropped one by one: None for each object that is kept."""
        before, self._live, self._next = self._live, self._next, {}
        return _dropped(before, self._live)

    def rollback(self) -> list[Any]:
        """The configuration that was compiled is given up."""
        dropped = [value for key, value in self._next.items() if key not in self._live]
        self._next = {}
        return dropped


def _dropped(before: dict[Any, Any], live: dict[Any, Any]) -> Iterator[Any]:
    while before:
        key, value = before.popitem()
        yield None if key in live else value


class RouteInfo(Struct, frozen=True):
    """What a filter may know of the route that it is compiled for. `file` and `line` say where its YAML stands."""

    name: str
    inbound: bool
    file: str = ""
    line: int = 0


class Build:
    """All that a filter may ask for while it is compiled for one route."""

    def __init__(
        self,
        route: RouteInfo,
        stats: Stats,
        keep: Keep,
        clock: Callable[[], float],
        random: Random,
        upstream: Callable[[str], Handler],
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
        close: Callable[[Callable[[], None]], None],
        log: Callable[..., None],
        line: Callable[[str], tuple[str, int]],
    ) -> None:
        self.route = route
        self.stats = stats
        self.keep = keep
        """Keys are the filter's own; they should start with its name and the route's."""
        self.clock = clock
        """Monotonic seconds, the same clock as `Request.deadline`."""
        self.random = random
        self.upstream = upstream
        """Returns the handler of an Upstream by name; raises KeyError when there is none."""
        self.spawn = spawn
        """Runs a coroutine that may outlive the request; it ends with the process."""
        self.close = close
        """Registers a function to call when this configuration is retired."""
        self.log = log
        """Writes one structured event: `log("shadow denial", rule=...)`."""
        self.line = line
        """Says where a key of this policy stands: `line("allow[0]")` -> (file, line)."""


class Filter(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A policy: the struct is its YAML schema, `wrap` its behaviour.

    `name` is its key under `policies`. Fields are documented by `Annotated[..., Meta(description=...)]`. A filter that
    `guards` keeps requests out: `check` warns where a more specific host escapes it.
    """

    name: ClassVar[str]
    guards: ClassVar[bool] = False

    @property
    def request_fields(self) -> tuple[str, ...]:
        """The request fields that it looks at or edits by their configured names: other spellings never pass."""
        return ()

    def wrap(self, inner: Handler, build: Build) -> Handler:
        """Returns the handler that does this policy's work around `inner`; called once for each route and swap."""
        raise NotImplementedError


class Source(Protocol):
    """Where configuration comes from. `updates` yields whole models; the taker answers each with one of the others."""

    def updates(self) -> Any: ...
    def accept(self, version: str) -> None: ...
    def reject(self, version: str, error: Exception) -> None: ...
