"""What may be asked of the admin API: the parameters of each query are the fields of a type."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from l7proxy.proxy.decision import Question, field
from l7proxy.telemetry.log import Level

LINE = (
    '{"time":"2026-11-24T02:00:01.123Z","event":"request","direction":"inbound","method":"GET","scheme":"http",'
    '"authority":"orders.example.com","path":"/v1/orders/7","protocol":"1.1","route":"orders","status":403,'
    '"grpc_status":null,"flags":"UAEX","code":"denied","detail":"","bytes_in":0,"bytes_out":43,"duration_ms":0.3,'
    '"queue_ms":null,"connect_ms":null,"first_byte_ms":null,"upstream":"","endpoint":"","attempts":0,"peer":"",'
    '"source":"10.0.0.17","request_id":"b7ad6b7169203331","trace_id":"","config_version":"4bb5ff3c2e01"}'
)


class StatsQuery(Struct, frozen=True):
    """Which metrics are told."""

    name: Annotated[
        tuple[str, ...],
        Meta(description="What their names begin with; repeatable, by default all.", examples=[["l7proxy_"]]),
    ] = ()


class LevelQuery(Struct, frozen=True):
    """The level to set."""

    level: Annotated[Level, Meta(description="The least level of events to be logged.")]


class WhyQuery(Struct, frozen=True):
    """The request to look for."""

    id: Annotated[
        str, Meta(min_length=1, description="Its request id, or the id of its trace.", examples=["b7ad6b7169203331"])
    ]


class LineQuery(Struct, frozen=True):
    """The request to account for."""

    line: Annotated[str, Meta(description="Its line of the JSON access log.", examples=[LINE])]


class ExplainQuery(Struct, frozen=True):
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
    version: Annotated[
        str, Meta(description="The configuration to ask, of those that are kept; by default the live one.")
    ] = ""

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
