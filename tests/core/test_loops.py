"""Which addresses are our own, whichever way a destination and a listener are written."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.core.address import Address, address_of
from l7proxy.core.loops import Listening, Loops, is_local

PORT = 15001


def own(*hosts: str) -> Listening:
    """Listens on these hosts of a machine that has one address beside its loopback interface."""
    return Listening(
        [(host, PORT) for host in hosts], lambda address: address.is_loopback or str(address) == "10.0.0.1"
    )


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "::ffff:0.0.0.0"),
        ("10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.1.2.3"),
        ("0.0.0.0", "10.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "127.0.0.1"),
        ("::", "10.0.0.1"),
        ("::", "::1"),
        ("::", "::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_a_destination_that_ends_at_a_listener_is_accepted(listen: str, host: str) -> None:
    assert own(listen).accepts(host, PORT)
    assert not own(listen).accepts(host, PORT + 1)


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "::1"),
        ("127.0.0.1", "::"),
        ("0.0.0.0", "10.0.0.2"),
        ("0.0.0.0", "::1"),
        ("::", "10.0.0.2"),
        ("::", "2001:db8::1"),
    ],
)
def test_a_destination_that_ends_elsewhere_is_not(listen: str, host: str) -> None:
    assert not own(listen).accepts(host, PORT)


@given(st.lists(st.ip_addresses(), max_size=5), st.ip_addresses())
def test_listeners_of_single_addresses_accept_these_alone(bound: list[Address], address: Address) -> None:
    listens = [str(one) for one in bound if not one.is_unspecified]
    if not address.is_unspecified:
        known = {address_of(text) for text in listens}
        assert own(*listens).accepts(str(address), PORT) == (address_of(str(address)) in known)


def test_the_kernel_tells_the_addresses_of_this_host() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        probe.connect(("127.0.0.1", 9))
        assert is_local(address_of(probe.getsockname()[0]))
    assert all(is_local(address_of(host)) for host in ("127.0.0.1", "127.255.255.1", "::1"))
    # RFC 5737 and RFC 3849 keep these for documentation.
    assert not any(is_local(address_of(host)) for host in ("198.51.100.7", "203.0.113.7", "2001:db8::7", "224.0.0.1"))


def test_no_two_sidecars_have_one_mark() -> None:
    one, other = Loops(), Loops()
    marks = {value for loops in (one, other) for _, value in loops.fields}
    assert len(marks) == 4
    assert one.passed(one.fields[True][1], True)
    assert not one.passed(one.fields[True][1], False)
    assert not one.passed(other.fields[True][1], True)
