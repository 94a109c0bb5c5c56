from typing import Annotated, Any, ClassVar, Literal

import pytest
from msgspec import Meta, Struct

from l7proxy.config.decode import decode
from l7proxy.config.model import Route
from l7proxy.config.scalars import INVALID, Notes
from l7proxy.config.yaml import Chunk, parse
from l7proxy.core.fields import (
    Cidr,
    CollectorUrl,
    Duration,
    File,
    HeaderName,
    HostPattern,
    HostPort,
    Listen,
    Method,
    Regex,
    Size,
    Url,
)
from l7proxy.core.slices import finish


class Inner(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    exactly_one: ClassVar[tuple[tuple[str, ...], ...]] = (("a", "b", "otherKey"),)
    a: int | None = None
    b: str | None = None
    other_key: bool | None = None


class Outer(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: Annotated[str, Meta(min_length=2, max_length=5, pattern="^[a-z]+$")]
    count: Annotated[int, Meta(ge=1, le=10)] = 5
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    wait: Annotated[Duration, Meta(gt=0)] = 1.0
    room: Annotated[Size, Meta(ge=1024)] = 1024
    on: bool = False
    mode: Literal["STRICT", "OFF"] = "OFF"
    code: Literal[301, 302] = 301
    items: Annotated[tuple[Inner, ...], Meta(min_length=1, max_length=2)] = ()
    names: dict[HeaderName, str | Inner] = {}
    either: Duration | Literal["never"] | None = None
    pair: tuple[int, ...] | Inner | None = None
    seen: frozenset[str] = frozenset()
    anything: Any = None


class Loose(Struct, frozen=True, rename="camel"):
    name: str = ""


def read(text: str, kind: Any = Outer) -> tuple[Any, Notes]:
    notes = Notes("f", "/etc/l7proxy")
    return decode(finish(parse(Chunk(text.encode(), 0), "f", {})), kind, "spec", notes), notes


def value(text: str, kind: Any = Outer) -> Any:
    found, notes = read(text, kind)
    assert not notes.problems
    return found


def mistakes(text: str, kind: Any = Outer) -> str:
    found, notes = read(text, kind)
    assert found is INVALID
    return "\n".join(map(str, notes.problems))


def test_a_mapping_becomes_the_struct_that_it_describes():
    text = """
        name: abc
        count: 7
        share: 1e-2
        wait: 1m30s
        room: 64KiB
        on: true
        mode: STRICT
        code: 302
        items: [{a: -3}, {otherKey: false}]
        names: {X-One: no, x-two: {b: "5"}}
        either: never
        pair: [1, 2]
        seen: [x, x]
        anything: {a: [1, 2.5, true, null, "7", x]}
    """
    assert value(text) == Outer(
        name="abc",
        count=7,
        share=0.01,
        wait=90.0,
        room=65536,
        on=True,
        mode="STRICT",
        code=302,
        items=(Inner(a=-3), Inner(other_key=False)),
        names={"x-one": "no", "x-two": Inner(b="5")},
        either="never",
        pair=(1, 2),
        seen=frozenset(("x",)),
        anything={"a": [1, 2.5, True, None, "7", "x"]},
    )


@pytest.mark.parametrize("text", ["8080", "no", "1.10", "true", "0x10", "12:30", "'~'"])
def test_a_text_is_the_text_that_stands_there(text):
    assert value(f"{{b: {text}}}", Inner) == Inner(b=text.strip("'"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: abc", "f:1: spec.nam: unknown key; did you mean 'name'?\nf:1: spec: key 'name' is missing"),
        ("name: abc\nROOM: 1KiB", "f:2: spec.ROOM: unknown key; did you mean 'room'?"),
        ("name: abc\nzzz: 1", "f:2: spec.zzz: unknown key"),
        ("name: a", "f:1: spec.name: is shorter than 2"),
        ("name: abcdef", "f:1: spec.name: is longer than 5"),
        ("name: ABC", "f:1: spec.name: 'ABC' is not of the form ^[a-z]+$"),
        ("name: [abc]", "f:1: spec.name: must be a text, not a list"),
        ("name: abc\nname2:", "f:2: spec.name2: unknown key; did you mean 'names'?"),
        ("name: ~", "f:1: spec.name: nothing stands here: give it a value, {} for a block of defaults"),
        ("name: abc\ncount: '5'", "f:2: spec.count: must be a whole number, not the text '5' in quotes"),
        ("name: abc\ncount: 5.0", "f:2: spec.count: must be a whole number, not '5.0'"),
        ("name: abc\ncount: 010", "f:2: spec.count: must be a whole number, not '010'"),
        ("name: abc\ncount: 0x1f", "f:2: spec.count: must be a whole number, not '0x1f'"),
        ("name: abc\ncount: 1_000", "f:2: spec.count: must be a whole number, not '1_000'"),
        ("name: abc\ncount: 0", "f:2: spec.count: 0 must be at least 1"),
        ("name: abc\ncount: 11", "f:2: spec.count: 11 must be at most 10"),
        ("name: abc\nshare: .inf", "f:2: spec.share: must be a number, not '.inf'"),
        ("name: abc\nshare: nan", "f:2: spec.share: must be a number, not 'nan'"),
        ("name: abc\nwait: 5", "f:2: spec.wait: '5' is not a duration: write it like 250ms, 2s, 1m30s or 1h"),
        ("name: abc\nwait: 0s", "f:2: spec.wait: 0s must be more than 0s"),
        ("name: abc\nroom: 64kb", "f:2: spec.room: '64kb' is not a size: write it like 512B, 64KiB, 1MiB or 2GiB"),
        ("name: abc\nroom: 1B", "f:2: spec.room: 1B must be at least 1KiB"),
        ("name: abc\non: yes", "f:2: spec.on: must be true or false, not 'yes'"),
        ("name: abc\non: 'true'", "f:2: spec.on: must be true or false, not the text 'true'"),
        ("name: abc\nmode: strict", "must be one of OFF, STRICT, not 'strict'; did you mean 'STRICT'?"),
        ("name: abc\ncode: 303", "f:2: spec.code: must be one of 301, 302, not '303'"),
        ("name: abc\nitems: []", "f:2: spec.items: is empty"),
        ("name: abc\nitems: [{a: 1}, {a: 1}, {a: 1}]", "f:2: spec.items: has more than 2 items"),
        ("name: abc\nitems: {a: 1}", "f:2: spec.items: must be a list, not a mapping"),
        ("name: abc\nitems:\n  - a: 1\n    b: x", "f:3: spec.items[0]: only one of 'a' and 'b' can stand here"),
        ("name: abc\nitems:\n  - {}", "f:3: spec.items[0]: one of 'a', 'b' and 'otherKey' is needed"),
        ("name: abc\nnames: {A: x, a: y}", "f:2: spec.names.a: is the same key as another: 'a'"),
        ("name: abc\nnames: {a b: x}", "f:2: spec.names.a b: 'a b' is not a token"),
        ("name: abc\nnames: {a: [x]}", "f:2: spec.names.a: must be a text or a mapping, not a list"),
        ("name: abc\neither: soon", ", or must be one of never, not 'soon'"),
        ("name: abc\npair: x", "f:2: spec.pair: must be a mapping or a list, not 'x'"),
        ("- a", "f:1: spec: must be a mapping, not a list"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(text, message):
    assert message in mistakes(text)


def test_all_mistakes_are_told_in_one_pass():
    text = "name: ABC\ncount: x\nitems:\n  - {a: x, c: 1}\n  - {b: [1]}\nwait: 1\n"
    assert [line.split(":")[1] for line in mistakes(text).split("\n")] == ["1", "2", "4", "4", "5", "6"]


def test_a_struct_that_allows_unknown_keys_passes_over_them_and_over_nulls():
    assert value("{name: ~, other: {x: 1}}", Loose) == Loose()


def test_the_line_of_every_value_is_kept_by_its_path():
    _, notes = read("name: abc\nitems:\n  - a: 1\n  -\n    b: x\nnames:\n  k:\n    b: y\n")
    assert notes.lines == {
        "spec.name": 1,
        "spec.items": 2,
        "spec.items[0]": 3,
        "spec.items[0].a": 3,
        "spec.items[1]": 5,
        "spec.items[1].b": 5,
        "spec.names": 6,
        "spec.names.k": 7,
        "spec.names.k.b": 8,
    }


class Checked(Struct, frozen=True):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


def test_what_a_struct_says_of_itself_is_a_mistake_at_its_line():
    assert mistakes("low: 2\nhigh: 1", Checked) == "f:1: spec: low is above high"


class Texts(Struct, frozen=True):
    listen: Listen | None = None
    hostport: HostPort | None = None
    url: Url | None = None
    collector: CollectorUrl | None = None
    host: HostPattern | None = None
    regex: Regex | None = None
    cidr: Cidr | None = None
    method: Method | None = None
    file: File | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen: '[::]:15006'", "[::]:15006"),
        ("listen: 127.0.0.1:0", "127.0.0.1:0"),
        ("listen: unix:/run/a.sock", "unix:/run/a.sock"),
        ("hostport: Payments.Shop.svc:9090", "payments.shop.svc:9090"),
        ("hostport: '[fd00::5]:9090'", "[fd00::5]:9090"),
        ("url: http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("url: http://[::1]:8080/", "http://[::1]:8080/"),
        ("collector: https://a/base", "https://a/base"),
        ("collector: grpc://[::1]:4317", "grpc://[::1]:4317"),
        ("collector: grpcs://a", "grpcs://a"),
        ("host: Orders.Example.COM.", "orders.example.com"),
        ("host: '*.Svc'", "*.svc"),
        ("host: '*'", "*"),
        ("host: '[FD00::0:5]'", "fd00::5"),
        ("regex: '/v[0-9]+'", "/v[0-9]+"),
        ("cidr: 10.1.2.3/8", "10.0.0.0/8"),
        ("cidr: 192.0.2.7", "192.0.2.7/32"),
        ("method: PATCH", "PATCH"),
        ("file: certs/tls.crt", "/etc/l7proxy/certs/tls.crt"),
        ("file: ../tls.crt", "/etc/tls.crt"),
        ("file: /tls.crt", "/tls.crt"),
    ],
)
def test_a_text_is_brought_into_the_form_that_is_compared(text, expected):
    found = value(text, Texts)
    assert getattr(found, text.split(":")[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "listen: localhost:80",
        "listen: 127.0.0.1",
        "listen: 127.0.0.1:65536",
        "listen: unix:run.sock",
        "listen: ':80'",
        "hostport: a:0",
        "hostport: a b:1",
        "hostport: '::1:80'",
        "url: 127.0.0.1:8080",
        "url: ftp://a",
        "url: http://a:b",
        "url: http://a/?x=1",
        "url: http://u@a/",
        "collector: ws://a",
        "collector: a:4317",
        "collector: grpc://a:4317/v1/traces",
        "host: a.*.b",
        "host: '*a.b'",
        "host: a_ b",
        "host: a..b",
        "host: ''",
        "host: a:80",
        "host: '[::1'",
        "regex: '(a'",
        r"regex: '(a)\1'",
        "regex: '(?=a)'",
        "regex: '(a{1000}){1000}'",
        "regex: '[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}[a-z]{1000}"
        "[a-z]{1000}[a-z]{1000}'",
        "cidr: 10.0.0.0/33",
        "cidr: example.com",
        "method: 'GE T'",
        "file: ''",
    ],
)
def test_a_text_that_cannot_be_used_is_refused(text):
    assert mistakes(text, Texts).startswith("f:1: spec.")


def test_policies_stand_in_policy_order_whatever_the_order_of_the_yaml():
    found = value("policies: {retry: {}, timeout: {request: 1s}, rateLimit: {requests: 5}}", Route)
    assert [policy.name for policy in found.policies] == ["rateLimit", "timeout", "retry"]


def test_an_unknown_policy_is_told_with_the_one_that_was_meant():
    assert mistakes("policies:\n  ratelimit: {requests: 5}", Route) == (
        "f:2: spec.policies.ratelimit: unknown policy; did you mean 'rateLimit'?"
    )


def test_a_mistake_within_a_policy_is_told_at_its_line():
    assert mistakes("policies:\n  timeout:\n    request: 5x\n  retry: []\n", Route) == (
        "f:3: spec.policies.timeout.request: '5x' is not a duration: write it like 250ms, 2s, 1m30s or 1h\n"
        "f:4: spec.policies.retry: must be a mapping, not a list"
    )


def test_names_of_upstreams_and_files_are_noted_with_their_paths():
    text = "split: [{upstream: a}, {upstream: b}]"
    _, notes = read(text, Route)
    assert [(found.kind, found.value, found.path) for found in notes.references] == [
        ("upstream", "a", "spec.split[0].upstream"),
        ("upstream", "b", "spec.split[1].upstream"),
    ]
