"""Proves what must hold for every request, or finds a request for which it does not.

Of each class of requests that the configuration and the invariant tell apart (`proxy.classes`) one is asked of the live
path. What that cannot decide is not taken to hold.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from l7proxy.config.cases import Claim, InvariantSpec, Requests
from l7proxy.config.model import APP, Model
from l7proxy.core.message import Request
from l7proxy.filters.authorizer import Clause, Rule, Table
from l7proxy.filters.registry import FILTERS
from l7proxy.proxy.classes import requests
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import Explainer
from l7proxy.proxy.explanation import Explanation, Verdict
from l7proxy.proxy.trace import NOT_REACHED
from l7proxy.proxy.verify import names

_KNOWN = frozenset(("AuthorizationPolicy", *(policy.name for policy in FILTERS)))
"""Policies of which it is known that they decide by what the classes tell apart, or not at all."""
_NO_GOOD = ("bad_request", "method_not_allowed")
"""The codes of requests that are refused for what they are, wherever they are sent."""


class Proof(Struct, frozen=True):
    """What came of one invariant: how many requests were asked, and why it is not proved, "" when it is.

    `example` is a request for which it does not hold, with what becomes of it.
    """

    asked: int
    why: str = ""
    example: tuple[Question, Explanation] | None = None


async def prove(explainer: Explainer, spec: InvariantSpec) -> Proof:
    """Decides an invariant over all requests."""
    claim, never = spec.claim, spec.never is not None
    if claim.to is not None and not _there(explainer.model, claim.to):
        return Proof(0, f"there is no upstream {claim.to}")
    exceptions = [_clauses(one) for one in claim.exceptions]
    speaks, excepted = _matching([_clauses(claim)]), _matching(exceptions)
    asked = 0
    try:
        for question in requests(
            [explainer.model],
            claim.direction == "inbound",
            _clauses(claim),
            [clause for clauses in exceptions for clause in clauses],
        ):
            request = explainer.heard(question)
            if not speaks(request) or excepted(request):
                continue
            asked += 1
            told = await explainer.ask(question)
            passes = told.allowed and (claim.to is None or claim.to in names(told.upstream))
            if passes is never and not _is_no_good(told):
                return Proof(asked, _sentence(claim, passes), (question, told))
            unknown = next((verdict for verdict in told.policies if _is_foreign(verdict)), None)
            if unknown is not None:
                why = f"undecided: what the policy {unknown.policy} decides may depend on anything"
                return Proof(asked, why, (question, told))
    except ValueError as error:
        return Proof(asked, f"undecided: {error}")
    return Proof(asked)


def _clauses(one: Requests) -> list[Clause]:
    hosts = [Clause("host", one.hosts)] if one.hosts and "*" not in one.hosts else []
    return [*hosts, *one.clauses("clientIP")]


def _matching(alternatives: Sequence[list[Clause]]) -> Callable[[Request], bool]:
    """Returns a function that tells whether all clauses of an alternative hold, as authorization tells it."""
    table = Table([Rule("", ((tuple(clauses),),)) for clauses in alternatives])
    return lambda request: table.match(request) != 0


def _there(model: Model, upstream: str) -> bool:
    inbound = model.sidecar.spec.inbound
    return upstream in model.upstreams or (upstream == APP and inbound is not None and inbound.app is not None)


def _is_no_good(told: Explanation) -> bool:
    return told.answer is not None and told.answer.code in _NO_GOOD


def _is_foreign(verdict: Verdict) -> bool:
    return verdict.policy not in _KNOWN and verdict.outcome != NOT_REACHED


def _sentence(claim: Claim, passes: bool) -> str:
    if claim.to is None:
        return f"this request is {'' if passes else 'not '}allowed"
    return f"this request {'goes' if passes else 'does not go'} to {claim.to}"
