"""What is remembered of finished requests: how many, which of them longer, and how little."""

import gc
import sys

import pytest

from l7proxy.core.message import Attempt
from l7proxy.core.stream import Stream
from l7proxy.telemetry.access import record, take_down
from l7proxy.telemetry.history import FAILED, LONGEST, RECENT, History
from tests.telemetry.requests import finished


def add(history: History, number: int, status: int = 200, **fields: object) -> None:
    request = finished(request_id=b"%d" % number, trace_id=b"t%d" % (number // 2), **fields)
    history.add(request, status, take_down(request, status, 0.001, "v1"))


def ids(history: History, name: bytes) -> list[bytes]:
    return [entry[0] for entry in history.find(name)]


def test_a_request_is_found_by_its_id_and_by_that_of_its_trace() -> None:
    history = History()
    for number in range(4):
        add(history, number, 500 if number == 2 else 200)
    assert ids(history, b"2") == [b"2"]
    assert ids(history, b"t1") == [b"2", b"3"]
    assert ids(history, b"7") == []


def test_failures_outlive_the_requests_that_went_well() -> None:
    history = History()
    add(history, 0, 403, code="denied", flags="UAEX")
    add(history, 1, 200)
    for number in range(2, 2 + 10 * RECENT):
        add(history, number)
    assert ids(history, b"0") == [b"0"]
    assert ids(history, b"1") == []
    assert ids(history, b"%d" % (2 + 9 * RECENT)) != []


def test_a_flood_of_one_failure_pushes_out_no_other() -> None:
    history = History()
    kinds = [
        (403, {"code": "denied", "flags": "UAEX"}),
        (503, {"code": "upstream_connect", "flags": "UF"}),
        (500, {}),
        (404, {}),
        (200, {"grpc_status": 7}),
        (499, {"flags": "DC"}),
    ]
    for number, (status, fields) in enumerate(kinds):
        add(history, number, status, **fields)
    for number in range(10, 10 + 3 * FAILED):
        add(history, number, 429, code="rate_limited", flags="RL")
    assert [ids(history, b"%d" % number) for number in range(len(kinds))] == [[b"%d" % n] for n in range(len(kinds))]
    assert len(history.failures(10_000)) == FAILED + len(kinds)
    assert history.failures(2)[0][0] == b"%d" % (9 + 3 * FAILED)


@pytest.mark.parametrize("name", ["path", "authority", "detail"])
def test_what_a_client_makes_long_is_cut(name: str) -> None:
    history = History()
    long = "x" * 5000 if name == "detail" else b"x" * 5000
    add(history, 1, 200, **{name: long})
    [entry] = history.find(b"1")
    assert len(getattr(record(*entry), name)) == LONGEST + 3


def test_nothing_of_the_request_itself_is_kept() -> None:
    history = History()
    request = finished(request_id=b"1", headers=[(b"authorization", b"secret")], body=Stream(), query=b"token=secret")
    request.tried = [Attempt("app", "a:1", 503, "", "", "503", 1.0, 2.0, 3.0, 4.0)]
    history.add(request, 200, take_down(request, 200, 0.1, "v1"))
    [entry] = history.find(b"1")
    assert "secret" not in repr(entry)
    held = [thing for thing in gc.get_referents(*entry, entry) if gc.is_tracked(thing)]
    assert held == [request.tried]


def test_memory_is_bounded() -> None:
    history = History()
    for number in range(3 * RECENT):
        add(history, number, path=b"/v1/orders/%d" % number)
    entries = list(history._recent)
    assert len(entries) == RECENT
    assert sum(map(sys.getsizeof, entries)) + sum(
        sys.getsizeof(value) for entry in entries for value in entry
    ) < 3000 * len(entries)
