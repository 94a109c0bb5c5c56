"""SPIFFE IDs, peers, hosts and the header that tells the application: pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity.client_tls import covers
from l7proxy.identity.spiffe import parse
from l7proxy.identity.xfcc import ClientCert, element

WEB = Peer(
    identity="spiffe://demo/web", uri="spiffe://demo/web", subject="CN=web", fingerprint="ab12", dns_names=("web.svc",)
)


@pytest.mark.parametrize(
    ("text", "namespace", "account"),
    [
        ("spiffe://demo/ns/shop/sa/web", "shop", "web"),
        ("spiffe://a.b-c_d/x", "", ""),
        ("spiffe://demo", "", ""),
        ("spiffe://demo/ns/shop/sa/web/more", "", ""),
        ("spiffe://demo/A-z._9", "", ""),
    ],
)
def test_a_spiffe_id_is_read(text: str, namespace: str, account: str) -> None:
    found = parse(text)
    assert str(found) == text
    assert (found.namespace, found.service_account) == (namespace, account)


@pytest.mark.parametrize(
    "text",
    ["", "spiffe:/demo/x", "SPIFFE://demo/x", "https://demo/x", "spiffe://", "spiffe:///x", "spiffe://Demo/x",
     "spiffe://demo:80/x", "spiffe://u@demo/x", "spiffe://demo/", "spiffe://demo//x", "spiffe://demo/./x",
     "spiffe://demo/x/..", "spiffe://demo/a%20b", "spiffe://demo/x?y", "spiffe://demo/x#y", "spiffe://demo/é",
     "spiffe://demo/x/", "spiffe://" + "a" * 256 + "/x", "spiffe://demo/" + "x" * 2048, "spiffe://demo/a b", "spiffe://demo/x\n"],
)  # fmt: skip
def test_what_is_no_spiffe_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@given(st.text(max_size=60))
def test_whatever_is_read_is_written_the_same(tail: str) -> None:
    text = "spiffe://demo/" + tail
    try:
        assert str(parse(text)) == text
    except ValueError:
        return
    assert text.isascii()
    assert not {"", ".", ".."} & set(tail.split("/"))


@pytest.mark.parametrize(
    ("name", "host", "covered"),
    [
        ("a.example.com", "a.example.com", True),
        ("A.Example.com", "a.example.COM.", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.com", "example.com", False),
        ("*", "localhost", False),
        ("a*.example.com", "ab.example.com", False),
    ],
)
def test_a_wildcard_covers_one_label(name: str, host: str, covered: bool) -> None:
    assert covers((name,), host) == covered


def test_the_header_says_who_showed_what_to_whom() -> None:
    assert element("spiffe://demo/orders", WEB) == (
        b'By=spiffe://demo/orders;Hash=ab12;Subject="CN=web";URI=spiffe://demo/web;DNS=web.svc'
    )
    assert element("", ANONYMOUS) == b""


def test_a_subject_cannot_break_out_of_the_header() -> None:
    peer = Peer(subject='CN="a\\b",O=x\r\nx-admin: yes', uri="spiffe://demo/a;b", fingerprint="1")
    value = element("", peer)
    assert b"\r" not in value
    assert b"\n" not in value
    assert b'Subject="CN=\\"a\\\\b\\",O=x??x-admin: yes"' in value
    assert value.endswith(b'URI="spiffe://demo/a;b"')


@pytest.mark.parametrize(
    ("mode", "trusted", "came", "goes"),
    [
        ("SANITIZE_SET", False, [b"x"], [b"ours"]),
        ("SANITIZE_SET", True, [b"x"], [b"ours"]),
        ("APPEND_FORWARD", False, [b"x"], [b"ours"]),
        ("APPEND_FORWARD", True, [b"x", b"y"], [b"x, y,ours"]),
        ("APPEND_FORWARD", True, [], [b"ours"]),
        ("ALWAYS_FORWARD_ONLY", True, [b"x"], [b"x"]),
        ("ALWAYS_FORWARD_ONLY", True, [], []),
        ("ALWAYS_FORWARD_ONLY", False, [b"x"], [b"ours"]),
    ],
)
def test_only_a_trusted_proxy_is_believed(mode: str, trusted: bool, came: list[bytes], goes: list[bytes]) -> None:
    name = b"x-forwarded-client-cert"
    headers = [(b"a", b"1"), *((name, value) for value in came)]
    ClientCert(mode, str).rewrite(headers, WEB, trusted)  # type: ignore[arg-type]
    ours = element("", WEB)
    assert [value.replace(ours, b"ours") for key, value in headers if key == name] == goes
    assert (b"a", b"1") in headers


def test_nobody_s_header_is_left_without_a_certificate() -> None:
    headers = [(b"x-forwarded-client-cert", b"URI=spiffe://demo/admin")]
    ClientCert("SANITIZE_SET", str).rewrite(headers, ANONYMOUS, False)
    assert headers == []
