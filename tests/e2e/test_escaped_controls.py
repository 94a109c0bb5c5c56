"""Escaped controls in paths: refused where rules look at paths, for a framework's `$` matches before a last newline."""

import json

import pytest

from tests.conftest import StartSidecar
from tests.support.net import Address
from tests.support.sidecar import Sidecar, istio, route

ESCAPES = [f"%{byte:02X}" for byte in (*range(0x20), 0x7F)]
SPELLINGS = [*ESCAPES, *(escape.lower() for escape in ESCAPES if escape.lower() != escape)]
DENY = {"deny": [{"paths": ["/admin", "/admin/*"]}]}


def ask(proxy: Sidecar, target: str) -> tuple[int, str, str]:
    """Returns the status, the error code and the body of the answer."""
    answer = proxy.get(target)
    return (
        answer.status,
        answer.all("x-l7proxy-error")[0] if answer.all("x-l7proxy-error") else "",
        answer.body.decode(),
    )


def test_the_application_reads_a_newline_at_the_end_as_nothing(sidecar: StartSidecar, starlette_app: Address) -> None:
    started = sidecar(app=starlette_app)
    assert started.get("/admin%0a").body == b"admin"


@pytest.mark.parametrize("policies", [{"authorization": DENY}, {"authorization": {**DENY, "mode": "SHADOW"}}])
def test_no_escaped_control_passes_a_rule(
    policies: dict[str, object], sidecar: StartSidecar, starlette_app: Address
) -> None:
    started = sidecar(route("all", policies=policies), app=starlette_app)
    for escape in SPELLINGS:
        for target in (f"/admin{escape}", f"/admin/x{escape}", f"/ad{escape}min", f"/{escape}/admin", f"/x{escape}?a"):
            assert ask(started, target)[:2] == (400, "bad_request"), target
    assert started.get("/x%20y").body == b"other /x%20y"


def test_no_escaped_control_passes_an_authorization_policy(sidecar: StartSidecar, starlette_app: Address) -> None:
    rules = [{"to": [{"operation": {"paths": ["/admin", "/admin/*"]}}]}]
    started = sidecar(istio("AuthorizationPolicy", action="DENY", rules=rules), app=starlette_app)
    for escape in SPELLINGS:
        assert ask(started, f"/admin{escape}")[:2] == (400, "bad_request"), escape


@pytest.mark.parametrize("slashes", ["REJECT", "UNESCAPE", "KEEP"])
def test_what_becomes_of_slashes_lifts_nothing_else(
    slashes: str, sidecar: StartSidecar, starlette_app: Address
) -> None:
    started = sidecar(
        route("all", policies={"authorization": DENY}), app=starlette_app, inbound={"encodedSlashes": slashes}
    )
    for target in ("/admin%0a", "/x%2fy%0A", "/admin;x", "/%2561dmin", "/x%2f%7F"):
        assert ask(started, target)[:2] == (400, "bad_request"), target
    expected = {"REJECT": (400, "bad_request"), "UNESCAPE": (200, ""), "KEEP": (200, "")}
    assert ask(started, "/x%2fy")[:2] == expected[slashes]


def test_escaped_controls_pass_where_no_rule_looks_at_paths(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    started = sidecar(route("all", policies={"timeout": {"request": "5s"}}), app=uvicorn_app)
    for escape in ESCAPES[1:]:
        assert json.loads(started.get(f"/x{escape}y").body)["target"] == f"/x{escape}y"
    assert ask(started, "/x%00")[:2] == (400, "bad_request")
