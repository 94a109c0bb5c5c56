"""What changes between two configurations, as decisions about requests and not as text.

Each request is asked of both, through the live path's own functions (`proxy.explain`), and what they say is compared
fact by fact. What differs is grouped by the lines that bring it about: requests that one rule denies are one change.
"""

from typing import Any, Literal

from msgspec import Struct

from l7proxy.config.describe import said
from l7proxy.config.model import APP, Resource, Upstream
from l7proxy.filters.authorization import SHADOW_DENIED, Authorization
from l7proxy.filters.retry import Retry
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import Explainer
from l7proxy.proxy.explanation import Explanation, Part, Towards, Verdict
from l7proxy.proxy.trace import NOT_REACHED

Kind = Literal["denial", "grant", "route", "upstream", "answer", "policy"]
KINDS: tuple[Kind, ...] = ("denial", "grant", "route", "upstream", "answer", "policy")
"""Gravest first: a request is counted under the first that fits it."""

MOST = 100_000
"""Different requests that one comparison asks: it remembers each."""

_WHERE_TO = ("endpoints", "dns", "protocol")
"""What says where an Upstream is; its other keys say how it is treated."""

_MADE = frozenset(("x-request-id", "traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"))
"""Header fields that are another one for each request."""


class Difference(Part, frozen=True):
    """One thing that is not the same, and the `file:line` that says so on either side, "" where none does."""

    what: str
    old: str
    new: str
    old_where: str
    new_where: str


class Change(Struct):
    """Requests that differ for the same reason: how many different ones, how often they were seen, and one of them."""

    kind: Kind
    example: Question
    differences: tuple[Difference, ...]
    requests: int = 0
    seen: int = 0


class Full(Exception):
    """`MOST` requests were asked before."""


class Comparison:
    """Asks requests of two configurations, each request once, and keeps what differs."""

    def __init__(self, old: Explainer, new: Explainer) -> None:
        self._old, self._new = _Side(old), _Side(new)
        self._asked: dict[Question, Change | None] = {}
        self._changes: dict[tuple[str, ...], Change] = {}

    @property
    def requests(self) -> int:
        """How many different requests were asked."""
        return len(self._asked)

    @property
    def changes(self) -> list[Change]:
        """What differs: the gravest kind first, and of each kind what most requests meet."""
        return sorted(
            self._changes.values(), key=lambda change: (KINDS.index(change.kind), -change.requests, -change.seen)
        )

    async def ask(self, question: Question, seen: int = 0) -> Explanation | None:
        """Asks a request, and returns what the old configuration says of it, None where it was asked before.

        Raises ValueError for a request that no client can send, and Full.
        """
        if question in self._asked:
            change = self._asked[question]
            if change is not None:
                change.seen += seen
            return None
        if len(self._asked) >= MOST:
            raise Full
        old = await self._old.explainer.ask(question)
        new = await self._new.explainer.ask(question)
        change = self._asked[question] = self._changed(question, old, new)
        if change is not None:
            change.requests += 1
            change.seen += seen
        return old

    def _changed(self, question: Question, old: Explanation, new: Explanation) -> Change | None:
        """Returns the change that a request is a case of, None where both sides do the same with it."""
        if old.allowed != new.allowed:
            kind: Kind = "denial" if old.allowed else "grant"
            stopper = _stopper(new if old.allowed else old)
            before, now = self._old.verdict(old, kind, stopper), self._new.verdict(new, kind, stopper)
        else:
            before, now = self._old.facts(old, new), self._new.facts(new, old)
        nothing = _Fact("policy", "none", before["route"].where), _Fact("policy", "none", now["route"].where)
        found = [
            (before.get(what, other).kind, Difference(what, one.text, other.text, one.where, other.where))
            for what in {**before, **now}
            if (one := before.get(what, nothing[0])).text != (other := now.get(what, nothing[1])).text
        ]
        if not found:
            return None
        found.sort(key=lambda pair: KINDS.index(pair[0]))
        kind, differences = found[0][0], tuple(difference for _, difference in found)
        # The texts may be another one for each request, the lines that bring them about are not.
        cause = (kind, *(text for item in differences for text in (item.what, item.old_where, item.new_where)))
        return self._changes.setdefault(cause, Change(kind, question, differences))


class _Fact(Struct, frozen=True):
    """What a configuration does in one respect, in words, and the `file:line` that says so."""

    kind: Kind
    text: str
    where: str


_Facts = dict[str, _Fact]
"""By what they are about."""


class _Side:
    """One of the two configurations: what it says of a request, as facts."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self._model = explainer.model
        self._routes = {document.name: document for document in self._model.routes}
        self._settings: dict[tuple[str, str], _Facts] = {}

    def verdict(self, told: Explanation, kind: Kind, stopper: Verdict | None) -> _Facts:
        """Returns by which rule a request is allowed or denied, where `stopper` denies it on one side."""
        facts = {"route": self._route(told)}
        where = facts["route"].where
        by = next(
            (own for own in reversed(told.policies) if stopper is not None and own.policy == stopper.policy), None
        )
        if told.refused:
            text, where = f"refused: {told.refused}", _line(self._model.sidecar, "spec.inbound")
        elif by is not None:
            text, where = f"{by.policy} {by.outcome}{f': {by.rule}' if by.rule else ''}", by.where or where
        elif not told.allowed:
            text = _answered(told)
        else:
            text = f"allowed, without {stopper.policy}" if stopper is not None else "allowed"
        return {"decision": _Fact(kind, text, where), **facts}

    def facts(self, told: Explanation, beside: Explanation) -> _Facts:
        """Returns what can be compared with the facts of the other side, which says `beside` of the same request."""
        facts = {"route": self._route(told)}
        where = facts["route"].where
        facts["answer"] = _Fact("answer", _answered(told), where)
        if not told.allowed:
            return facts
        facts |= self._policies(told, where)
        towards, other = told.upstream, beside.upstream
        if towards is not None:
            shares = ", ".join(f"{name} {weight}" for name, weight in towards.split.items())
            facts["upstream"] = _Fact("upstream", shares or towards.name, where)
            if other is not None:
                facts |= self._upstreams(towards, other)
                facts["sent host"] = _Fact("upstream", towards.authority, where)
                facts["sent path"] = _Fact("upstream", towards.target, where)
                facts |= _headers("policy", "sent header", towards.headers, where)
        elif other is None and told.answer is not None:
            facts["answer body"] = _Fact("answer", told.answer.body, where)
            facts |= _headers("answer", "answer header", told.answer.headers, where)
        return facts

    def _route(self, told: Explanation) -> _Fact:
        route = told.route
        if route is None:
            return _Fact("route", "none", "")
        return _Fact("route", route.name or "the default one", route.where)

    def _policies(self, told: Explanation, where: str) -> _Facts:
        """Returns what the policies of the route are set to; of authorization, its verdicts say what it does."""
        name = told.route.name if told.route is not None else ""
        facts = self._settings.get(("route", name))
        if facts is None:
            facts = self._settings["route", name] = {}
            document = self._routes.get(name)
            written = document.spec.policies if document is not None else ()
            # The compiler adds `retry` where it is not written.
            for policy in {Retry.name: Retry(), **{policy.name: policy for policy in written}}.values():
                if not isinstance(policy, Authorization):
                    facts |= _values(policy, policy.name, document, f"spec.policies.{policy.name}")
        shadows = [verdict for verdict in told.policies if verdict.outcome == SHADOW_DENIED]
        return facts | {f"shadow of {own.policy}": _Fact("policy", "denied", own.where or where) for own in shadows}

    def _upstreams(self, towards: Towards, other: Towards) -> _Facts:
        """Returns how the upstreams are called that take part on both sides, or the one with all requests."""
        if not (towards.split or other.split):
            return self._upstream(towards.name, "upstream")
        parts = [name for name in towards.split or [towards.name] if name in (other.split or [other.name])]
        return {what: fact for name in parts for what, fact in self._upstream(name, f"upstream {name}").items()}

    def _upstream(self, name: str, called: str) -> _Facts:
        facts = self._settings.get((called, name))
        if facts is None:
            document = self._model.upstreams.get(name)
            sidecar = self._model.sidecar
            app = sidecar.spec.inbound.app if name == APP and sidecar.spec.inbound is not None else None
            if document is not None:
                facts = _values(document.spec, called, document, "spec")
            else:
                facts = _values(Upstream(endpoints=(app,) if app else ()), called, sidecar, "spec.inbound.app")
            self._settings[called, name] = facts
        return facts


def _values(block: Struct, called: str, document: Resource[Any] | None, path: str) -> _Facts:
    """Returns what a block is set to, key by key, each with its line."""
    return {
        f"{called}.{key}" if key else called: _Fact(
            "upstream" if isinstance(block, Upstream) and key in _WHERE_TO else "policy",
            text,
            _line(document, f"{path}.{key}") if document is not None else "",
        )
        for key, text in (said(block) or {"": "applies"}).items()
    }


def _headers(kind: Kind, called: str, headers: tuple[tuple[str, str], ...], where: str) -> _Facts:
    facts: _Facts = {}
    for name, value in headers:
        if name not in _MADE:
            what = f"{called} {name}"
            facts[what] = _Fact(kind, f"{facts[what].text}, {value}" if what in facts else value, where)
    return facts


def _answered(told: Explanation) -> str:
    answer = told.answer
    if answer is None:
        return "no connection"
    return "the upstream's" if answer.by == "upstream" else " ".join(filter(None, (str(answer.status), answer.code)))


def _stopper(denied: Explanation) -> Verdict | None:
    """Returns the policy that denies a request, None where something else does."""
    code = denied.answer.code if denied.answer is not None else ""
    reached = [verdict for verdict in denied.policies if verdict.outcome != NOT_REACHED]
    return reached[-1] if reached and reached[-1].outcome == code else None


def _line(document: Resource[Any], path: str) -> str:
    file, line = document.where(path)
    return f"{file}:{line}"
