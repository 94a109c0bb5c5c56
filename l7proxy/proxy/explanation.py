"""Everything that decides about one request, as plain data: what `l7proxy explain --json` and `/explain` write."""

from msgspec import Struct


class Part(Struct, frozen=True, rename="camel"):
    """What is written as JSON with camelCase keys."""


class PassedOver(Part, frozen=True):
    """A match that comes before the one chosen, and what it asks for in vain."""

    route: str
    pattern: str
    where: str
    why: str


class Chosen(Part, frozen=True):
    """The route that takes the request, and the path pattern that matched; no name where no document describes it."""

    name: str
    pattern: str
    where: str


class Verdict(Part, frozen=True):
    """One policy: what it decided by which rule; `applies` where it passes every request on, or `not reached`."""

    policy: str
    outcome: str
    rule: str
    where: str


class Decided(Part, frozen=True):
    """Which route took a request, why better candidates lost, and what each policy decided."""

    host: str
    route: Chosen | None
    passed_over: tuple[PassedOver, ...]
    policies: tuple[Verdict, ...]


class Served(Decided, frozen=True):
    """What was decided about a request that was served, where it went last, and with which code it was refused."""

    version: str
    upstream: str
    endpoint: str
    attempts: int
    code: str
    detail: str


class Timeouts(Part, frozen=True):
    """Seconds, None for no bound."""

    connect: float | None = None
    request: float | None = None
    per_try: float | None = None
    idle: float | None = None


class Retries(Part, frozen=True):
    """How often a request is tried again, and after what."""

    attempts: int
    on: tuple[str, ...]


class Endpoint(Part, frozen=True):
    """One address; `ejected` tells that it is left out for a while."""

    address: str
    ejected: bool = False


class Towards(Part, frozen=True):
    """The upstream, and what it would be asked. `split` are the weights where several upstreams share the requests."""

    name: str
    endpoints: tuple[Endpoint, ...]
    balance: str
    protocol: str
    authority: str
    target: str
    headers: tuple[tuple[str, str], ...]
    split: dict[str, int]


class Answer(Part, frozen=True):
    """What the client gets. That of an upstream is taken to be a 200 without header fields or body."""

    by: str
    status: int
    code: str
    detail: str
    headers: tuple[tuple[str, str], ...]
    body: str


class Explanation(Part, frozen=True):
    """What becomes of one request, and why.

    `refused` says why the connection would not come about. `allowed` is False where the proxy refuses the request.
    """

    version: str
    direction: str
    method: str
    scheme: str
    authority: str
    path: str
    identity: str
    source: str
    refused: str
    notes: tuple[str, ...]
    host: str
    route: Chosen | None
    passed_over: tuple[PassedOver, ...]
    policies: tuple[Verdict, ...]
    timeouts: Timeouts
    retries: Retries | None
    upstream: Towards | None
    allowed: bool
    answer: Answer | None
