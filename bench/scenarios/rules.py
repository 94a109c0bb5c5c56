"""Authorization by many rules: what they cost a request."""

import json

from bench import certs
from bench.compare import Comparison, Entry
from bench.contenders import L7PROXY, Proxy, Setup
from bench.load import Load, wrk
from bench.model import Finding, Row
from bench.scenarios.cost import dearer

RULES, IDENTITIES = 1000, 20


def _route(rules: int) -> str:
    """Returns a Route with that many allow rules; only the last one names the client of the load."""
    lines = []
    for rule in range(rules):
        names = [f"spiffe://{certs.TRUST_DOMAIN}/ns/other-{rule}/sa/{one}" for one in range(IDENTITIES - 1)]
        names.append(certs.CLIENT if rule == rules - 1 else f"spiffe://{certs.TRUST_DOMAIN}/ns/other-{rule}/sa/last")
        lines.append(f"        - identities: {json.dumps(names)}\n")
    return (
        "---\napiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: rules}\nspec:\n  hosts: [rules.bench]\n"
        "  upstream: app\n  policies:\n    authorization:\n      allow:\n" + "".join(lines)
    )


def _setup(rules: int) -> Setup:
    return Setup(chain=False, telemetry=False, tls=True, more=_route(rules))


def _guarded(proxy: Proxy, seconds: int) -> Load:
    return wrk(proxy.url("/1k"), 32, seconds, proxy.lab.client_certificate(), host="rules.bench")


def _cost(rows: dict[str, Row]) -> list[Finding]:
    value = dearer(rows, f"{RULES} rules", "1 rule")
    return [
        Finding(f"{RULES:,} rules of {IDENTITIES} identities over one", value, "us CPU a request", "<= 5", value <= 5)
    ]


SCENARIOS = (
    Comparison(
        name="rules",
        title=f"l7proxy: authorization by {RULES:,} rules of {IDENTITIES} identities, and by one; mTLS",
        entries=(Entry(L7PROXY, _setup(1), "1 rule"), Entry(L7PROXY, _setup(RULES), f"{RULES} rules")),
        drive=_guarded,
        derive=_cost,
        reference="1 rule",
    ),
)
