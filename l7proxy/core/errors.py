"""Every answer that the proxy makes itself: one table of codes, one exception that carries a code."""

import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from l7proxy.core.expanded import Expanded, concealed, shown
from l7proxy.core.headers import Headers

_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")


class Code(NamedTuple):
    """What one error code means on the wire, in the log and in the metrics.

    `flag` is the response flag as Envoy's access log writes it, `proxy_status` the RFC 9209 2.3 error type and `grpc`
    the gRPC status number that stands for it.
    """

    name: str
    status: int
    flag: str
    proxy_status: str
    grpc: int
    text: str


CODES: dict[str, Code] = {
    code.name: code
    for code in (
        Code("bad_request", 400, "DPE", "http_request_error", 13, "the request is malformed"),
        Code("unauthenticated", 401, "UAEX", "http_request_denied", 16, "credentials are missing or not valid"),
        Code("denied", 403, "UAEX", "http_request_denied", 7, "access denied"),
        Code("no_route", 404, "NR", "destination_not_found", 12, "no route matches the request"),
        Code("method_not_allowed", 405, "DPE", "http_request_denied", 12, "the method is not allowed here"),
        Code("request_timeout", 408, "SI", "http_request_error", 4, "the request did not arrive in time"),
        Code("body_too_large", 413, "DPE", "http_request_error", 8, "the request body is too large"),
        Code("uri_too_long", 414, "DPE", "http_request_error", 13, "the request target is too long"),
        Code("misdirected", 421, "NR", "http_request_error", 12, "this server does not serve the requested host"),
        Code("rate_limited", 429, "RL", "http_request_denied", 8, "too many requests"),
        Code("headers_too_large", 431, "DPE", "http_request_error", 8, "the request header fields are too large"),
        Code("filter_error", 500, "FE", "proxy_internal_error", 13, "a policy failed"),
        Code("not_implemented", 501, "DPE", "http_request_error", 12, "the request needs something not implemented"),
        Code("upstream_reset", 502, "UC", "connection_terminated", 14, "the upstream closed the connection"),
        Code("upstream_protocol", 502, "UPE", "http_protocol_error", 14, "the upstream's answer is malformed"),
        Code("egress_blocked", 502, "NR", "destination_ip_prohibited", 14, "the destination is not in the registry"),
        Code("upstream_connect", 503, "UF", "connection_refused", 14, "the upstream cannot be reached"),
        Code("no_healthy_upstream", 503, "UH", "destination_unavailable", 14, "no endpoint is available"),
        Code("overflow", 503, "UO", "connection_limit_reached", 14, "a limit of concurrent work is reached"),
        Code("draining", 503, "DR", "destination_unavailable", 14, "the proxy is shutting down"),
        Code("upstream_timeout", 504, "UT", "http_response_timeout", 4, "the upstream did not answer in time"),
        Code("http_version", 505, "DPE", "http_request_error", 12, "the HTTP version is not supported"),
        # Not UNAVAILABLE to gRPC, whose clients would try again.
        Code("loop_detected", 508, "NR", "proxy_loop_detected", 13, "the request would come back to this proxy"),
    )
}


def proxy_status(name: str, code: Code) -> bytes:
    """Returns the value of Proxy-Status that says that the proxy called `name` met this error (RFC 9209 2)."""
    return b"%b; error=%b" % (_identifier(name), code.proxy_status.encode())


@functools.lru_cache(64)
def _identifier(name: str) -> bytes:
    """Returns a name as a token of a structured field, or as a string where it is none (RFC 8941 3.3.3 and 3.3.4)."""
    if _TOKEN.fullmatch(name):
        return name.encode()
    text = "".join(char if " " <= char <= "~" else "?" for char in name)
    return b'"%b"' % text.replace("\\", "\\\\").replace('"', '\\"').encode()


class ProxyError(Exception):
    """A request ends here with the answer of one of `CODES`; `detail` goes to the log and never to the client.

    Raises KeyError when `code` is not in `CODES`.
    """

    def __init__(self, code: str, detail: str = "", headers: Headers | None = None, flag: str | None = None) -> None:
        self.code = CODES[code]
        self.detail = detail
        self.headers: Headers = headers or []
        self.flag = flag or self.code.flag
        self.grpc = self.code.grpc
        """The gRPC status that a call ends with."""
        super().__init__(code, detail)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.detail or self.code.text}"


class Cut(Exception):
    """A response that has begun cannot be completed: the connection or stream must end so that the client can tell."""


class ConfigError(Exception):
    """A configuration that cannot be used: one `file:line: message` for each mistake."""

    def __init__(self, problems: list["Problem"]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.problems,)


class Problem(NamedTuple):
    """One mistake in a configuration; `line` counts from 1, 0 where no line can be named."""

    file: str
    line: int
    message: str

    def concealing(self, secrets: Iterable[Expanded]) -> "Problem":
        """Returns the same mistake with `secrets` as they are written."""
        return self._replace(message=shown(concealed(self.message, secrets)))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"
