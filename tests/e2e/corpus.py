"""Hostile HTTP/1.1 requests, row by row of the threat table: what is refused, and what looks alike but is fine."""

from typing import NamedTuple

HOST = b"Host: test\r\n"
BIG = b"a" * 1000


class Case(NamedTuple):
    """`data` must be answered with one of `statuses`, and nothing of it may reach the app."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = (400,)


def _head(
    name: str, *lines: bytes, start: bytes = b"POST / HTTP/1.1", body: bytes = b"", statuses: tuple[int, ...] = (400,)
) -> Case:
    return Case(name, b"\r\n".join((start, *lines)) + b"\r\n\r\n" + body, statuses)


def _lengths() -> list[Case]:
    hello = b"hello"
    cases = [
        _head(f"content-length {value!r}", b"Host: test", b"Content-Length: " + value, body=hello)
        for value in (
            *(
                b"5, 6",
                b"5, 5",
                b"5,",
                b",5",
                b"+5",
                b"-1",
                b"-0",
                b"0x5",
                b"5 6",
                b"",
                b"5;",
                b"5.0",
                b"5e0",
                b"five",
                b"\xb5",
            ),
            *(b"9223372036854775808", b"18446744073709551621", b"9" * 40, b"\xd9\xa5", b"5\x0b"),
        )
    ]
    cases += [
        _head("two lengths that differ", b"Host: test", b"Content-Length: 5", b"Content-Length: 6", body=hello),
        _head("two lengths that agree", b"Host: test", b"Content-Length: 5", b"content-length: 5", body=hello),
        _head("two lengths, one empty", b"Host: test", b"Content-Length: 5", b"Content-Length:", body=hello),
        _head(
            "length and chunked", b"Host: test", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
        ),
        _head(
            "chunked and length", b"Host: test", b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"
        ),
        _head(
            "length 0 and chunked",
            b"Host: test",
            b"Content-Length: 0",
            b"Transfer-Encoding: chunked",
            body=b"0\r\n\r\n",
        ),
        _head("length and unknown coding", b"Host: test", b"Content-Length: 5", b"Transfer-Encoding: x", body=hello),
    ]
    return cases


def _codings() -> list[Case]:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    malformed = (
        *(
            b"chunked, identity",
            b"chunked, chunked",
            b"gzip, chunked",
            b",chunked",
            b"chunked,",
            b", chunked",
            b"chunked;q=1",
        ),
        *(
            b"chunked chunked",
            b"chunked\x0b",
            b"\x0bchunked",
            b"chunked\x00",
            b'"chunked"',
            b"",
            b"chunked,gzip",
        ),
    )
    unknown = (b"'chunked'", b"xchunked", b"chunkedx", b"identity", b"gzip", b"cow", b"chunke")
    return [
        *(_head(f"coding {v!r}", b"Host: test", b"Transfer-Encoding: " + v, body=body) for v in malformed),
        *(
            _head(f"coding {v!r}", b"Host: test", b"Transfer-Encoding: " + v, body=body, statuses=(501,))
            for v in unknown
        ),
        _head("coding folded", b"Host: test", b"Transfer-Encoding:", b" chunked", body=body),
        _head("coding twice", b"Host: test", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=body),
        _head(
            "coding, then identity",
            b"Host: test",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: identity",
            body=body,
        ),
        _head(
            "identity, then coding",
            b"Host: test",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: chunked",
            body=body,
        ),
        _head("coding, blank before colon", b"Host: test", b"Transfer-Encoding : chunked", body=body),
        _head("coding, tab before colon", b"Host: test", b"Transfer-Encoding\t: chunked", body=body),
        _head("coding in HTTP/1.0", b"Host: test", b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0", body=body),
    ]


_CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"

CHUNKS = [
    Case(f"chunk {body[:24]!r}", _CHUNKED + body)
    for body in (
        *(
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
        ),
        *(
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\t5\r\nhello\r\n0\r\n\r\n",
            b"5 ;x\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
        ),
        *(b";x\r\nhello\r\n0\r\n\r\n", b"00000000000000005\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\nhello\r\n"),
        *(
            b"g\r\nhello\r\n0\r\n\r\n",
            b"5h\r\nhello\r\n0\r\n\r\n",
            b"5,\r\nhello\r\n0\r\n\r\n",
            b"5_0\r\nhello\r\n0\r\n\r\n",
        ),
        *(b"5\r\nhell\r\n0\r\n\r\n", b"5\r\nhelloo\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n"),
        *(
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"0\n\n",
        ),
        *(
            b"5\r\r\nhello\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5;\x00\r\nhello\r\n0\r\n\r\n",
        ),
        *(b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n", b"0;" + b"x" * 300 + b"\r\n\r\n"),
        *(
            b"0\r\nx : y\r\n\r\n",
            b"0\r\n x: y\r\n\r\n",
            b"0\r\nx: a\rb\r\n\r\n",
            b"0\r\nx: a\nb: c\r\n\r\n",
            b"0\r\nx\r\n\r\n",
        ),
        *(
            b"0\r\nx: a\x00b\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
            b"0\r\nx: a\r\n folded\r\n\r\n",
            b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n",
        ),
    )
]
"""Bodies that go wrong: their heads are fine, so what reaches the app when they come late is never a whole request."""


def _lines() -> list[Case]:
    get = b"GET / HTTP/1.1"
    cases = [
        _head(f"header line {line!r}", b"Host: test", line, start=get)
        for line in (
            *(
                b"X: a\rb",
                b"X: a\r\rb",
                b"X\r: a",
                b"\rX: a",
                b"X: a\nY: b",
                b"X: a\x00b",
                b"X: \x01",
                b"X: \x7f",
                b"X: a\x0bb",
            ),
            *(
                b"X: a\x1fb",
                b"X\x00: a",
                b"X\x01Y: a",
                b"X: a\r\n folded",
                b"X: a\r\n\tfolded",
                b"X:\r\n folded",
                b"X : a",
                b"X\t: a",
            ),
            *(
                b"X\x0b: a",
                b"no colon",
                b"novalue",
                b": empty name",
                b":",
                b"X Y: a",
                b"X(Y): a",
                b"X/Y: a",
                b"X@Y: a",
                b'X"Y: a',
            ),
            *(
                b"X\xe9: a",
                b"X\x80: a",
                b"[X]: a",
                b"X,Y: a",
                b"X;Y: a",
                b"{X}: a",
                b"X=Y: a",
                b"X?: a",
                b"\x00",
                b"\xff",
            ),
        )
    ]
    return [
        *cases,
        _head("blank before the first header", b" Host: test", start=get),
        _head("tab before the first header", b"\tX: a", b"Host: test", start=get),
        _head("folded first line", b" folded", b"Host: test", start=get),
        Case("bare LF lines", b"GET / HTTP/1.1\nHost: test\n\n"),
        Case("bare LF after the request line", b"GET / HTTP/1.1\nHost: test\r\n\r\n"),
        Case("bare LF after a header", b"GET / HTTP/1.1\r\nHost: test\nX: a\r\n\r\n"),
        Case("bare LF ends the head", b"GET / HTTP/1.1\r\nHost: test\r\n\n"),
        Case("bare CR lines", b"GET / HTTP/1.1\rHost: test\r\r"),
        Case("CR CR LF", b"GET / HTTP/1.1\r\r\nHost: test\r\n\r\n"),
        Case("LF CR", b"GET / HTTP/1.1\n\rHost: test\r\n\r\n"),
        Case("HTTP/0.9 with headers", b"GET /x\nHost: test\n\n"),
        Case("HTTP/0.9", b"GET /x\r\n", (400, 505)),
        Case("HTTP/0.9 with CRLF headers", b"GET /x\r\nHost: test\r\n\r\n", (400, 505)),
        Case("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 300),
        Case("NUL bytes", b"\0" * 64),
        Case("bare LF before the request", b"\nGET / HTTP/1.1\r\nHost: test\r\n\r\n"),
    ]


def _hosts() -> list[Case]:
    get = b"GET / HTTP/1.1"
    bad = (
        *(
            b"a b",
            b"a@b",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a,b",
            b"a:b",
            b"a:99999",
            b"a:-1",
            b"a:+80",
            b"a:80:80",
            b"a:80 ",
        ),
        *(
            b"user@a",
            b"user:pw@a",
            b"http://a",
            b"[::1",
            b"::1",
            b"[::1]x",
            b"[fe80::1%25eth0]",
            b"a%00b",
            b"a\xe9",
            b"a;b",
        ),
        *(b"(a)", b"<a>", b'"a"', b"a'b", b"a|b", b"a{b}", b"a^b", b"`a`", b"a\tb", b"a" * 256, b":80"),
    )
    return [
        *(_head(f"host {value!r}", b"Host: " + value, start=get) for value in bad if value.strip() == value),
        _head("no host", b"X: y", start=get),
        _head("no host, no header", start=get),
        _head("empty host", b"Host:", start=get),
        _head("two hosts", b"Host: test", b"Host: other", start=get),
        _head("two hosts that agree", b"Host: test", b"host: test", start=get),
        _head("host, then empty host", b"Host: test", b"Host:", start=get),
        _head("absolute form, no host", b"X: y", start=b"GET http://test/ HTTP/1.1"),
        _head("absolute form, another host", b"Host: other", start=b"GET http://test/ HTTP/1.1"),
        _head("absolute form, another port", b"Host: test", start=b"GET http://test:81/ HTTP/1.1"),
        _head("absolute form, two hosts", b"Host: test", b"Host: test", start=b"GET http://test/ HTTP/1.1"),
        _head("absolute form, userinfo", b"Host: test", start=b"GET http://user@test/ HTTP/1.1"),
        _head("absolute form, no authority", b"Host: test", start=b"GET http:/// HTTP/1.1"),
        _head("absolute form, odd scheme", b"Host: test", start=b"GET ftp://test/ HTTP/1.1"),
        _head("absolute form, no slashes", b"Host: test", start=b"GET http:test HTTP/1.1"),
        _head("connect with a path", b"Host: test", start=b"CONNECT /x HTTP/1.1", statuses=(400, 405)),
        _head("connect, another host", b"Host: other:443", start=b"CONNECT test:443 HTTP/1.1"),
        _head("connect, no port", b"Host: test", start=b"CONNECT test HTTP/1.1"),
        _head("connect, empty port", b"Host: test:", start=b"CONNECT test: HTTP/1.1"),
        _head("connect, port 0", b"Host: test:0", start=b"CONNECT test:0 HTTP/1.1"),
        _head("connect, no port of an IPv6 address", b"Host: [::1]", start=b"CONNECT [::1] HTTP/1.1"),
        _head("asterisk of a GET", b"Host: test", start=b"GET * HTTP/1.1"),
        _head("no slash", b"Host: test", start=b"GET test HTTP/1.1"),
    ]


def _first_lines() -> list[Case]:
    starts = (
        *(
            b"GET  / HTTP/1.1",
            b"GET /  HTTP/1.1",
            b" GET / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"GET\t/ HTTP/1.1",
            b"GET /\tHTTP/1.1",
        ),
        *(
            b"GET / x HTTP/1.1",
            b"GET / HTTP/1.1 HTTP/1.1",
            b"GET /",
            b"GET",
            b"GET / http/1.1",
            b"GET / HTTP/1",
            b"GET / HTTP/1.1x",
        ),
        *(
            b"GET / HTTP/01.1",
            b"GET / HTTP/1.01",
            b"GET / HTTP/11",
            b"GET / HTTP/1,1",
            b"GET / HTP/1.1",
            b"G(T / HTTP/1.1",
        ),
        *(
            b"G@T / HTTP/1.1",
            b"G\xc9T / HTTP/1.1",
            b"G\x00T / HTTP/1.1",
            b"GET: / HTTP/1.1",
            b"GET /\x00 HTTP/1.1",
            b"/ HTTP/1.1",
        ),
        *(
            b"GET /\x01 HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET /\xff HTTP/1.1",
            b"GET /\xc3\xa9 HTTP/1.1",
            b"M" * 33 + b" / HTTP/1.1",
        ),
        *(b"GET /a\x0bb HTTP/1.1", b"GET /a\rb HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET /a?b#c HTTP/1.1"),
        *(b"GET http://test/#a HTTP/1.1", b"GET http://test?a#b HTTP/1.1"),
    )
    versions = (b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0", b"HTTP/9.9")
    return [
        *(_head(f"first line {start!r}", b"Host: test", start=start) for start in starts),
        *(_head(f"version {v!r}", b"Host: test", start=b"GET / " + v, statuses=(505,)) for v in versions),
        _head("target of 9 KiB", b"Host: test", start=b"GET /" + b"a" * 9216 + b" HTTP/1.1", statuses=(414,)),
        _head(
            "target of 8 KiB and a byte", b"Host: test", start=b"GET /" + b"a" * 8192 + b" HTTP/1.1", statuses=(414,)
        ),
        _head("target of 100 KiB", b"Host: test", start=b"GET /" + b"a" * 102400 + b" HTTP/1.1", statuses=(414,)),
        Case("target without an end", b"GET /" + b"a" * 102400, (414,)),
        Case("method without an end", b"G" * 1000),
        _head("query of 9 KiB", b"Host: test", start=b"GET /?" + b"a" * 9216 + b" HTTP/1.1", statuses=(414,)),
    ]


def _sizes() -> list[Case]:
    get, large = b"GET / HTTP/1.1", (431,)
    return [
        _head("101 headers", b"Host: test", *(b"X: a",) * 100, start=get, statuses=large),
        _head("1,000 headers", b"Host: test", *(b"X: a",) * 1000, start=get, statuses=large),
        _head("one header of 17 KiB", b"Host: test", b"X: " + b"a" * 17408, start=get, statuses=large),
        _head("a name of 17 KiB", b"Host: test", b"X" * 17408 + b": a", start=get, statuses=large),
        _head("a head of 61 KiB", b"Host: test", *(b"X: " + BIG,) * 62, start=get, statuses=large),
        _head("a head of 1 MiB", b"Host: test", *(b"X: " + BIG,) * 1000, start=get, statuses=large),
        Case("a head without an end", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 200_000, large),
        Case("headers without an end", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: a\r\n" * 20_000, large),
        Case("trailers of 61 KiB", _CHUNKED + b"0\r\n" + (b"X: " + BIG + b"\r\n") * 62 + b"\r\n", (431, 400)),
        Case("one trailer of 17 KiB", _CHUNKED + b"0\r\nX: " + b"a" * 17408 + b"\r\n\r\n", (431,)),
        Case("101 trailers", _CHUNKED + b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n", (431, 400)),
    ]


REFUSED: list[Case] = [*_lengths(), *_codings(), *CHUNKS, *_lines(), *_hosts(), *_first_lines(), *_sizes()]

# What looks like one of the above and is as it should be: (name, bytes, the body that the app must get).
FINE: list[tuple[str, bytes, bytes]] = [
    ("chunked in another case", _CHUNKED.replace(b"chunked", b"Chunked") + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (
        "blanks around the coding",
        _CHUNKED.replace(b" chunked", b" \t chunked \t") + b"5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    ("a chunk extension", _CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
    ("leading zeros of a chunk", _CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    ("upper-case chunk size", _CHUNKED + b"A\r\nhellohello\r\n0\r\n\r\n", b"hellohello"),
    ("leading zeros of a length", b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 005\r\n\r\nhello", b"hello"),
    ("no blank after the colon", b"POST / HTTP/1.1\r\nHost:test\r\nContent-Length:5\r\n\r\nhello", b"hello"),
    ("tabs around the length", b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length:\t5\t\r\n\r\nhello", b"hello"),
    ("an empty value", b"GET / HTTP/1.1\r\nHost: test\r\nX:\r\n\r\n", b""),
    ("a value in UTF-8", b"GET / HTTP/1.1\r\nHost: test\r\nX: \xc3\xa9\r\n\r\n", b""),
    ("an empty line before the request", b"\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", b""),
    ("HTTP/1.0 without a host", b"GET / HTTP/1.0\r\n\r\n", b""),
    ("absolute form", b"GET http://test/ HTTP/1.1\r\nHost: test\r\n\r\n", b""),
    ("absolute form in upper case", b"GET HTTP://TEST/ HTTP/1.1\r\nHost: test\r\n\r\n", b""),
    ("an IPv6 host", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b""),
    ("a host with an underscore", b"GET / HTTP/1.1\r\nHost: a_b.c:8080\r\n\r\n", b""),
    ("an unknown method", b"BREW /pot HTTP/1.1\r\nHost: test\r\n\r\n", b""),
    ("100 headers", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: a\r\n" * 99 + b"\r\n", b""),
    ("one header of 15 KiB", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 15360 + b"\r\n\r\n", b""),
    ("a head of 59 KiB", b"GET / HTTP/1.1\r\nHost: test\r\n" + (b"X: " + BIG + b"\r\n") * 60 + b"\r\n", b""),
    ("a target of 8 KiB", b"GET /" + b"a" * 8191 + b" HTTP/1.1\r\nHost: test\r\n\r\n", b""),
    ("length 0 of a GET", b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n", b""),
    ("a body of a GET", b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
]
