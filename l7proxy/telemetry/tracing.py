"""Trace context and request ids: decided in a few lines for every request, with spans only for the sampled ones."""

import re
from binascii import hexlify
from collections.abc import Callable
from random import getrandbits, random
from typing import TYPE_CHECKING, NamedTuple

from l7proxy.core.headers import Headers, find, without
from l7proxy.core.loops import FIELD as CDN_LOOP
from l7proxy.core.message import Request

if TYPE_CHECKING:
    from l7proxy.telemetry.hindsight import Hindsight
    from l7proxy.telemetry.spans import Spans

# W3C Trace Context 3.2: version ff is invalid, ids are not all zero, and only later versions may be longer.
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.DOTALL
).fullmatch
_SAMPLED = frozenset(b"13579bdf")
"""The last digit of flags whose lowest bit is set."""

_WATCHED = frozenset((b"x-request-id", b"traceparent", b"tracestate", CDN_LOOP))

# https://github.com/openzipkin/b3-propagation: trace ids may be 64 bits wide.
_B3_TRACE = re.compile(rb"(?!0+$)(?:[0-9a-f]{16}){1,2}").fullmatch
_B3_SPAN = re.compile(rb"(?!0+$)[0-9a-f]{16}").fullmatch
_B3_DECISION = {b"0": False, b"1": True, b"d": True, b"false": False, b"true": True}

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}").fullmatch


class Parent(NamedTuple):
    """The caller's span; `sampled` is None where it leaves the decision to us, ids are empty where it only decided."""

    trace_id: bytes
    span_id: bytes
    sampled: bool | None


class Tracer:
    """Gives each request its id and its trace context.

    Without `spans`, context that came is passed on and none is made. With them, a request that no caller decided about
    is sampled with the probability `sampling`, and the context of one that is not says so to those that follow.
    With `b3`, B3 headers are read where there is no valid traceparent, and written beside it in both of their forms.
    `hindsight` is the span of every request that is not sampled, `lost` is told of each that came without a trace
    from the application.
    """

    __slots__ = ("_spans", "_sampling", "_b3", "_hindsight", "_lost")

    def __init__(
        self,
        spans: "Spans | None" = None,
        sampling: float = 0.0,
        b3: bool = False,
        hindsight: "Hindsight | None" = None,
        lost: Callable[[Request], None] | None = None,
    ) -> None:
        self._spans = spans
        self._sampling = sampling
        self._b3 = b3
        self._hindsight = hindsight
        self._lost = lost

    def begin(self, request: Request) -> None:
        """Sets `request_id`, `trace_id` and, when sampled, `span`; puts what the upstream is to see into the headers.

        An `x-request-id` that is there is kept: those of callers that are not trusted have been removed before. Sets
        `hops`, too: whatever leads from hop to hop is found in one pass over the fields.
        """
        headers = request.headers
        request_id = traceparent = None
        stateful = False
        for name, value in headers:
            if name in _WATCHED:
                if name == b"x-request-id":
                    request_id = value
                elif name == b"traceparent":
                    traceparent = b"more than one" if traceparent else value
                elif name == CDN_LOOP:
                    request.hops = b"%b, %b" % (request.hops, value) if request.hops else value
                else:
                    stateful = True
        fresh = None
        if request_id is None:
            request_id = fresh = hexlify(getrandbits(128).to_bytes(16, "big"))
            headers.append((b"x-request-id", request_id))
        elif not _REQUEST_ID(request_id):
            request_id = fresh = hexlify(getrandbits(128).to_bytes(16, "big"))
            put(headers, b"x-request-id", request_id)
        request.request_id = request_id

        if traceparent is None and not stateful and not self._b3:
            # The usual request: nobody has said anything yet.
            if self._spans is None:
                return
            request.undecided = True
            if self._lost is not None and not request.inbound:
                self._lost(request)
            if random() >= self._sampling:
                # An id that we made serves both; one search then finds log and headers. The second id is that of the
                # span that hindsight may make, or of none: it is there because the format wants one.
                trace_id = request.trace_id = fresh or hexlify(getrandbits(128).to_bytes(16, "big"))
                headers.append((b"traceparent", b"00-%b-%b-00" % (trace_id, trace_id[16:])))
                request.span = self._hindsight
                return
            self._spans.start(request, None, False)
        elif (
            traceparent is not None
            and _TRACEPARENT(traceparent)
            and (len(traceparent) == 55 or traceparent[:2] != b"00")
        ):
            trace_id = request.trace_id = traceparent[3:35]
            sampled = traceparent[54] in _SAMPLED
            if self._b3 or (sampled and self._spans is not None):
                self._follow(request, Parent(trace_id, traceparent[36:52], sampled))
            elif self._hindsight is not None:
                # As `_follow` does, in a fifth of the time: most requests within a mesh come this way.
                request.span = self._hindsight
                request.parent_id = traceparent[36:52]
                span_id = request.span_id = hexlify(getrandbits(64).to_bytes(8, "big"))
                ours = (b"traceparent", b"00-%b-%b-00" % (trace_id, span_id))
                headers[headers.index((b"traceparent", traceparent))] = ours
        else:
            parent = read_b3(headers) if self._b3 else None
            if parent is not None:
                self._follow(request, parent)
            elif self._spans is not None:
                request.undecided = True
                self._start(request, random() < self._sampling)

    def decide(self, request: Request, sampling: float) -> None:
        """Decides anew and with another probability, before anybody was told, about a request that is `undecided`."""
        spans, span = self._spans, request.span
        sampled = random() < sampling
        if spans is None or sampled == (span is not None and span.recording):
            return
        if sampled:
            parent = Parent(request.trace_id, request.parent_id, None) if request.parent_id else None
            spans.start(request, parent, self._b3)
        else:
            # The span that was begun is never ended, and so never sent.
            request.span_id = span.span_id.encode()
            request.span = self._hindsight
            write(request.headers, request.trace_id, request.span_id, False, self._b3)

    def _follow(self, request: Request, parent: Parent) -> None:
        """Continues the caller's trace."""
        undecided = request.undecided = parent.sampled is None
        sampled = random() < self._sampling if undecided else bool(parent.sampled)
        if not parent.trace_id:
            if self._spans is not None:
                self._start(request, sampled)
            return
        request.parent_id = parent.span_id
        if sampled and self._spans is not None:
            self._spans.start(request, parent, self._b3)
            return
        request.trace_id = parent.trace_id
        span_id = parent.span_id
        if self._hindsight is not None:
            request.span = self._hindsight
            span_id = request.span_id = hexlify(getrandbits(64).to_bytes(8, "big"))
        write(request.headers, parent.trace_id, span_id, sampled, self._b3)

    def _start(self, request: Request, sampled: bool) -> None:
        """Begins a trace."""
        headers = request.headers
        if self._lost is not None and not request.inbound:
            self._lost(request)
        # W3C Trace Context 3.3: the state of a trace that is not continued is not passed on.
        if find(headers, b"tracestate") is not None:
            headers[:] = without(headers, b"tracestate")
        if sampled and self._spans is not None:
            self._spans.start(request, None, self._b3)
            return
        request.span = self._hindsight
        trace_id = request.trace_id = hexlify(getrandbits(128).to_bytes(16, "big"))
        write(headers, trace_id, trace_id[16:], False, self._b3)


def read_b3(headers: Headers) -> Parent | None:
    """Returns the caller's span as B3 headers name it, the single header first; a decision may come without ids."""
    single = find(headers, b"b3")
    if single is not None:
        parts = single.lower().split(b"-")
        if len(parts) == 1:
            trace, span, decision = b"", b"", parts[0]
        else:
            trace, span, decision = parts[0], parts[1], parts[2] if len(parts) > 2 else b""
    else:
        trace = (find(headers, b"x-b3-traceid") or b"").lower()
        span = (find(headers, b"x-b3-spanid") or b"").lower()
        decision = (find(headers, b"x-b3-sampled") or b"").lower()
        if find(headers, b"x-b3-flags") == b"1":
            decision = b"d"
    sampled = _B3_DECISION.get(decision)
    if _B3_TRACE(trace) and _B3_SPAN(span):
        return Parent(trace.rjust(32, b"0"), span, sampled)
    return None if sampled is None or trace or span else Parent(b"", b"", sampled)


def write(headers: Headers, trace_id: bytes, span_id: bytes, sampled: bool, b3: bool) -> None:
    """Makes the span `span_id` the one that the next hop sees as its caller."""
    put(headers, b"traceparent", b"00-%b-%b-%b" % (trace_id, span_id, b"01" if sampled else b"00"))
    if b3:
        flag = b"1" if sampled else b"0"
        put(headers, b"b3", b"%b-%b-%b" % (trace_id, span_id, flag))
        put(headers, b"x-b3-traceid", trace_id)
        put(headers, b"x-b3-spanid", span_id)
        put(headers, b"x-b3-sampled", flag)
        # These would name another caller, or say `debug` where we say `sampled`.
        headers[:] = without(headers, b"x-b3-parentspanid", b"x-b3-flags")


def put(headers: Headers, name: bytes, value: bytes) -> None:
    """Replaces every field called `name` by one."""
    for index, (key, _) in enumerate(headers):
        if key == name:
            headers[index] = (name, value)
            for later in range(len(headers) - 1, index, -1):
                if headers[later][0] == name:
                    del headers[later]
            return
    headers.append((name, value))
