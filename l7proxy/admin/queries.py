"""What may be asked of the admin API: the parameters of each query are the fields of a type."""

from typing import Annotated, Literal

from msgspec import Meta

from l7proxy.admin.declare import Query
from l7proxy.proxy.decision import Question, field
from l7proxy.telemetry.log import Level


class StatsQuery(Query, frozen=True):
    """Which metrics are told."""

    name: Annotated[
        tuple[str, ...],
        Meta(description="What their names begin with; repeatable, by default all.", examples=[["l7proxy_"]]),
    ] = ()


class LevelQuery(Query, frozen=True):
    """The level to set."""

    level: Annotated[Level, Meta(description="The least level of events to be logged.")]


class ExplainQuery(Query, frozen=True):
    """The request to explain."""

    url: Annotated[
        str, Meta(description="Its URL, or a path alone.", examples=["https://orders.example.com/v1/orders/7"])
    ]
    method: Annotated[str, Meta(description="Its method.")] = "GET"
    identity: Annotated[str, Meta(description="The caller's SPIFFE ID or DNS name; by default it has none.")] = ""
    source_ip: Annotated[str, Meta(description="The caller's address.")] = "127.0.0.1"
    direction: Annotated[Literal["inbound", "outbound"], Meta(description="Which listener is asked.")] = "inbound"
    header: Annotated[
        tuple[str, ...], Meta(description="A header field; repeatable.", examples=[["x-tenant: blue"]])
    ] = ()

    def question(self) -> Question:
        """Returns what is asked; raises ValueError for what is no header field."""
        return Question(
            self.method,
            self.url,
            self.identity,
            tuple(map(field, self.header)),
            self.source_ip,
            self.direction == "inbound",
        )
