"""Why a finished request went as it went: what was taken down of it, and what its configuration decides about it.

What was taken down says what happened; `explain`, asked about the same request under the same configuration version,
says which rules lead there. Where the two differ, what was not taken down made the difference, and that is said.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from l7proxy.core.errors import CODES
from l7proxy.core.message import Attempt
from l7proxy.proxy.control import NotKept
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explanation import Explanation
from l7proxy.telemetry.access import Entry, Record, milliseconds, record
from l7proxy.telemetry.history import CUT, LONGEST

Explain = Callable[[Question, str], Awaitable[Explanation]]
"""Explains a question by the configuration with a version; raises NotKept."""

_UNROUTED = frozenset(("no_route", "egress_blocked", "method_not_allowed"))
"""Codes that say that a route was looked for in vain; with any other and no route, none was looked for."""

_OF_THE_MOMENT = frozenset(
    code.name for code in CODES.values() if code.status in (408, 413, 429) or code.status >= 500
) - {"egress_blocked"}
"""Codes that no configuration decides alone: limits, and what became of the upstream."""


class Tried(Struct, frozen=True):
    """One attempt at an upstream; `status` is 0 when no response head came, and `reason` why another one followed.

    `queue_ms` runs from the request's arrival to the start of the attempt, the others from there.
    """

    upstream: str
    endpoint: str
    status: int
    code: str
    detail: str
    reason: str
    queue_ms: float
    connect_ms: float | None
    first_byte_ms: float | None
    duration_ms: float


class Why(Struct, frozen=True):
    """A finished request, every attempt that was made for it, and the decision of the configuration that it names.

    `explanation` is None where there is none, and the notes say why.
    """

    request: Record
    attempts: tuple[Tried, ...]
    explanation: Explanation | None
    notes: tuple[str, ...]


async def remembered(entry: Entry, explain: Explain) -> Why:
    """Returns why a request of the history went as it went."""
    *_, start, sent, connected, head = entry[:23]
    forwarded, tried = entry[-2:]
    line = record(*entry)
    attempts = [_tried(start, attempt) for attempt in tried or ()]
    if line.attempts > len(attempts):
        status, end = line.status if head else 0, start + line.duration_ms / 1000
        last = (line.upstream, line.endpoint, status, line.code, line.detail, "", sent, connected, head, end)
        attempts.append(_tried(start, Attempt(*last)))
    return await account(line, explain, attempts, forwarded)


async def account(line: Record, explain: Explain, attempts: Sequence[Tried] = (), client: str = "") -> Why:
    """Returns why the request of a log line went as it went; `client` is the address that trusted proxies named."""
    explanation, notes = None, []
    asked = question(line, client)
    if line.event == "tunnel_open":
        notes.append("the tunnel was still open: another line tells of its end")
    if asked is None:
        notes.append("it was refused before a route was looked for, or its path is too long to be kept whole")
    else:
        try:
            explanation = await explain(asked, line.config_version)
        except NotKept as error:
            notes.append(f"{error}: only what was taken down is told")
        except ValueError as error:
            notes.append(f"it cannot be explained: {error}")
        else:
            notes += _differences(line, explanation)
    return Why(line, tuple(attempts), explanation, tuple(notes))


def question(line: Record, client: str = "") -> Question | None:
    """Returns what asks for the decision about the request of a log line, None where the line does not say enough."""
    if not line.method or (not line.route and line.code and line.code not in _UNROUTED and not line.attempts):
        return None
    if line.path.endswith(CUT) and len(line.path) > LONGEST:
        return None
    url = line.authority if line.method == "CONNECT" else f"{line.scheme}://{line.authority}{line.path}"
    headers = (("x-forwarded-for", client),) if client and client != line.source else ()
    return Question(line.method, url, line.peer, headers, line.source or "127.0.0.1", line.direction == "inbound")


def _differences(line: Record, told: Explanation) -> list[str]:
    """Says where the explanation is not what happened, and what may be the reason."""
    if told.version != line.config_version:
        return [f"this is configuration {told.version}; the request was served by {line.config_version}"]
    otherwise = deviation(line, told)
    unknown = "what was not taken down of it (header fields, parameters) made the difference"
    return [f"as far as it is known it{otherwise}: {unknown}"] if otherwise else []


def deviation(line: Record, told: Explanation) -> str:
    """Returns what an explanation tells that is not what happened, as a sentence goes on; "" where it agrees."""
    route = told.route.name if told.route is not None else ""
    code = told.answer.code if told.answer is not None else ""
    if told.refused:
        return "s connection would be refused"
    if route != line.route:
        return f" would take {f'route {route}' if route else 'no route'}"
    if line.code == code or (line.code in _OF_THE_MOMENT and not code):
        return ""
    return f" would be {f'answered {code}' if code else 'allowed'}"


def _tried(start: float, attempt: Attempt) -> Tried:
    sent = attempt.t_sent
    return Tried(
        attempt.upstream,
        attempt.endpoint,
        attempt.status,
        attempt.code,
        attempt.detail,
        attempt.reason,
        milliseconds(sent - start),
        milliseconds(attempt.t_connected - sent) if attempt.t_connected else None,
        milliseconds(attempt.t_head - sent) if attempt.t_head else None,
        milliseconds(attempt.t_end - sent),
    )
