"""What the admin API answers, as types: the OpenAPI document is made of them, and who answers is held to them."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta


class Error(TypedDict):
    """Why the question was not answered."""

    error: str


class Document(TypedDict):
    """One document of the live configuration, as it was understood."""

    kind: str
    name: str
    file: str
    line: int
    spec: dict[str, Any]


class Config(TypedDict):
    """The live configuration."""

    version: Annotated[str, Meta(description="The same for the same content; access log lines name it.")]
    documents: list[Document]


class Route(TypedDict):
    """One Route, and where its YAML stands."""

    name: str
    direction: Literal["inbound", "outbound"]
    hosts: tuple[str, ...]
    matches: list[dict[str, Any]]
    upstream: str | None
    policies: list[str]
    file: str
    line: int


class Address(TypedDict):
    """One address of an upstream, with requests under way and its smoothed latency."""

    address: str
    active: int
    latency_ms: Annotated[
        float, Meta(description="Measured to choose between several; 0 where there is one, or no request yet.")
    ]
    ejected_for_s: Annotated[float, Meta(description="0 where it takes requests.")]


class Cluster(TypedDict):
    """One upstream, and what is under way there."""

    name: str
    requests: int
    pending: Annotated[int, Meta(description="Requests that wait for a connection.")]
    connections: int
    endpoints: list[Address]


class Active(TypedDict):
    """How many requests of one route are under way."""

    direction: Literal["inbound", "outbound"]
    route: Annotated[str, Meta(description="Empty where no Route takes them.")]
    active: int


class Level(TypedDict):
    """The least level of events that are logged."""

    level: str


class Draining(TypedDict):
    """Clients are asked to leave."""

    draining: bool


class Quitting(TypedDict):
    """The process ends once requests under way are answered."""

    quitting: bool


class Series(TypedDict):
    """One series: a counter or gauge has a value, a histogram the rest, and one more bucket than there are bounds."""

    labels: dict[str, str]
    value: NotRequired[float]
    count: NotRequired[int]
    sum: NotRequired[float]
    buckets: NotRequired[list[int]]


class Metric(TypedDict):
    """All series of one metric. `bounds` are the upper bounds of a histogram's buckets; buckets are not cumulative."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    bounds: NotRequired[list[float]]
    series: list[Series]
