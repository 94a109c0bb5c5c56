"""What a text in the configuration can stand for: durations, sizes, addresses, hosts, patterns.

Each is an annotated type whose `Meta(extra={"format": name})` names a row of `FORMATS`; the decoder calls the row's
`parse`, the JSON Schema and the reference show its `pattern` and `example`.
"""

import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from msgspec import Meta

from l7proxy.core import patterns
from l7proxy.core.address import network_of


class Format(NamedTuple):
    """One kind of text: `parse` returns its value, or raises ValueError with a message that can follow `key: `.

    `show` writes a value as it is written in YAML. `refers` tells that the text names something that must exist.
    """

    name: str
    parse: Callable[[str], Any]
    example: str
    pattern: str = ""
    show: Callable[[Any], str] = str
    refers: bool = False


Duration = Annotated[float, Meta(extra={"format": "duration"})]
"""Seconds; written `250ms`, `2s`, `1m30s`, `1h`."""
Size = Annotated[int, Meta(extra={"format": "size"})]
"""Bytes; written `512B`, `64KiB`, `1MiB`, `2GiB`."""
Listen = Annotated[str, Meta(extra={"format": "listen"})]
"""Where to listen: `0.0.0.0:15006`, `[::]:15006`, `unix:/run/l7proxy/admin.sock`. Port 0 picks a free one."""
HostPort = Annotated[str, Meta(extra={"format": "hostport"})]
"""Whom to call: `10.0.0.5:9090`, `[fd00::5]:9090`, `payments.shop.svc:9090`."""
Url = Annotated[str, Meta(extra={"format": "url"})]
"""`http://` or `https://`, a host and a port, nothing after them but a path."""
CollectorUrl = Annotated[str, Meta(extra={"format": "collector"})]
"""A Url, or the same with `grpc://` or, over TLS, `grpcs://`."""
HostPattern = Annotated[str, Meta(extra={"format": "host"})]
"""A host to match, lower case: `orders.example.com`, `*.orders.svc` or `*`."""
Host = Annotated[str, Meta(extra={"format": "hostname"})]
"""One host name or address, without a port."""
PathText = Annotated[str, Meta(extra={"format": "path"})]
"""An absolute path."""
Regex = Annotated[str, Meta(extra={"format": "regex"})]
"""A regular expression of RE2's syntax; it must match the whole text."""
PathRegex = Annotated[str, Meta(extra={"format": "pathregex"})]
"""A Regex for paths, which come in ASCII."""
Cidr = Annotated[str, Meta(extra={"format": "cidr"})]
"""An address or a block of addresses: `10.0.0.0/8`, `192.0.2.7`, `fd00::/8`."""
Timestamp = Annotated[str, Meta(extra={"format": "timestamp"})]
"""A moment as RFC 3339 writes it: `2024-05-01T12:00:00Z`."""
HeaderName = Annotated[str, Meta(extra={"format": "header"})]
"""The name of a header field, lower case once it is read."""
HeaderValue = Annotated[str, Meta(extra={"format": "value"})]
"""The value of a header field."""
Method = Annotated[str, Meta(extra={"format": "method"})]
"""A request method, case-sensitive (RFC 9110 9.1)."""
UpstreamName = Annotated[str, Meta(extra={"format": "upstream"})]
"""The name of an Upstream of the same configuration, or `app`."""
File = Annotated[str, Meta(extra={"format": "file"})]
"""A file; a relative path starts at the folder of the document that names it."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def duration(text: str) -> float:
    """Returns the seconds that `1m30s` stands for."""
    total, at = 0.0, 0
    while found := _DURATION.match(text, at):
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if not text or at != len(text):
        raise ValueError(f"{text!r} is not a duration: write it like 250ms, 2s, 1m30s or 1h")
    return round(total, 9)


def show_duration(seconds: float) -> str:
    """Returns a duration as it is written in YAML, in its largest whole unit."""
    for unit, factor in reversed(_UNITS.items()):
        count = seconds / factor
        if seconds and count >= 1 and abs(count - round(count)) < 1e-9:
            return f"{round(count)}{unit}"
    return f"{seconds:g}s"


def show_size(count: int) -> str:
    """Returns a size as it is written in YAML, in its largest whole unit."""
    for unit, factor in reversed(_SIZES.items()):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"


def size(text: str) -> int:
    """Returns the bytes that `64KiB` stands for."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a size: write it like 512B, 64KiB, 1MiB or 2GiB")
    return int(found[1]) * _SIZES[found[2]]


def split_host_port(text: str) -> tuple[str, int]:
    """Returns (host, port) of `host:port` or `[v6]:port`; raises ValueError for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return _host(host), int(port)


def host_pattern(text: str) -> str:
    """Returns the pattern in the form that the router compares: lower case, no trailing dot, no brackets."""
    if text == "*":
        return text
    if text.startswith("*."):
        return "*." + _name(text[2:], text)
    if "*" in text:
        raise ValueError(f"{text!r}: a wildcard stands for whole labels at the start, like *.example.com")
    return _host(text)


def network(text: str) -> str:
    """Returns the block of addresses in its canonical form."""
    try:
        return str(network_of(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an address or a block like 10.0.0.0/8") from None


def timestamp(text: str) -> str:
    """Returns a moment of RFC 3339 in UTC: such texts sort as the moments do."""
    try:
        if not _TIMESTAMP.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time like 2024-05-01T12:00:00Z") from None


def url(text: str) -> str:
    """Returns the URL as it stands, once it is certain that it has a scheme, a host, a usable port and no path."""
    path = _url(text, ("http", "https"), "http://127.0.0.1:8080").path
    if path.strip("/"):
        raise ValueError(f"{text!r}: only scheme, host and port can be used here; a Route's `rewrite` changes paths")
    return text


def _url(text: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} is not a URL") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise ValueError(f"{text!r} is not a URL like {example}")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{text!r}: only scheme, host, port and path can be used here")
    _host(f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)
    return parts


def collector_url(text: str) -> str:
    """Returns the address of an OTLP collector as it stands."""
    parts = _url(text, ("http", "https", "grpc", "grpcs"), "http://127.0.0.1:4318 or grpc://127.0.0.1:4317")
    if text.startswith("grpc") and parts.path.strip("/"):
        raise ValueError(f"{text!r}: a collector of OTLP over gRPC has no path")
    return text


def regex(text: str) -> str:
    """Returns the expression as it stands, once RE2 has compiled it."""
    try:
        patterns.check(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a regular expression of RE2 that can be used: {error}") from None
    return text


def _path_regex(text: str) -> str:
    if (odd := next((letter for letter in text if letter > "\x7f"), None)) is not None:
        sent = quote(odd)
        raise ValueError(f"{text!r} matches no path: clients send {odd!r} as {sent}, which is what is matched")
    return regex(text)


def _listen(text: str) -> str:
    if text.startswith("unix:"):
        if not text.startswith("unix:/"):
            raise ValueError(f"{text!r}: a socket is named by its absolute path, like unix:/run/l7proxy.sock")
        return text
    try:
        host, _ = split_host_port(text)
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r} is not an address to listen on, like 127.0.0.1:15000 or [::]:15006") from None
    return text


def _hostport(text: str) -> str:
    if split_host_port(text)[1] == 0:
        raise ValueError(f"{text!r} has no port that can be called")
    return text.lower()


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address in brackets") from None
    return _name(text, text)


def _name(text: str, whole: str) -> str:
    name = text.removesuffix(".").lower()
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ValueError(f"{whole!r} is not a host name")
    if _NUMBERS.fullmatch(name):
        # No name of the DNS ends in a number (RFC 3696 2): this is meant to be an address.
        try:
            ipaddress.IPv4Address(name)
        except ValueError:
            raise ValueError(f"{whole!r} is not an IPv4 address") from None
    return name


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not a path: it starts with /")
    if any(c in text for c in "?#") or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not a path: it has no query, fragment, blank or control character")
    return text


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is not a token of letters, digits and !#$%&'*+.^_`|~-")
    return text


def _header(text: str) -> str:
    return _token(text).lower()


def _value(text: str) -> str:
    if text != text.strip(" \t") or any((c < " " and c != "\t") or c == "\x7f" for c in text):
        raise ValueError(f"{text!r} is not a header value: no control characters, no blanks at its ends")
    return text


def _file(text: str) -> str:
    if not text:
        raise ValueError("the path of a file is empty")
    return text


def _upstream(text: str) -> str:
    if not text:
        raise ValueError("the name of an upstream is empty")
    return text


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("duration", duration, "2s", r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$", show_duration),
        Format("size", size, "64KiB", r"^[0-9]{1,12}(B|KiB|MiB|GiB)$", show_size),
        Format("listen", _listen, "127.0.0.1:15000", r"^(unix:/.+|.+:[0-9]{1,5})$"),
        Format("hostport", _hostport, "10.0.0.5:9090", r"^.+:[0-9]{1,5}$"),
        Format("url", url, "http://127.0.0.1:8080", r"^https?://[^/?#\s]+/*$"),
        Format("collector", collector_url, "grpc://127.0.0.1:4317", r"^(https?|grpcs?)://[^?#\s]+$"),
        Format("host", host_pattern, "*.example.com", r"^(\*|(\*\.)?[^*\s/]+)$"),
        Format("hostname", _host, "orders.example.com", r"^[^*\s/]+$"),
        Format("path", _path, "/v1/orders", r"^/[^?#\s]*$"),
        Format("regex", regex, "/v[0-9]+/.*"),
        Format("pathregex", _path_regex, "/v[0-9]+/.*"),
        Format("cidr", network, "10.0.0.0/8", r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"),
        Format("header", _header, "x-tenant", r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"),
        Format("value", _value, "blue"),
        Format("method", _token, "GET", r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"),
        Format("file", _file, "certs/tls.crt", r"^.+$", refers=True),
        Format("timestamp", timestamp, "2024-05-01T12:00:00Z", r"^[0-9-]{10}[Tt][0-9:.]+([Zz]|[+-][0-9:]+)$"),
        Format("upstream", _upstream, "payments", r"^.+$", refers=True),
    )
}
