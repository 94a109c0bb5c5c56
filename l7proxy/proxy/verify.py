"""Holds explanations to what a policy test expects of them, and notes which routes and rules no test touches."""

from functools import partial

from msgspec import Struct

from l7proxy.config.cases import Case, Fields
from l7proxy.config.model import Match, Model, Resource, Route
from l7proxy.core.expanded import shown
from l7proxy.filters.authorization import Authorization
from l7proxy.filters.authorizer import RuleSet
from l7proxy.proxy.conditions import conditions, fields
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explanation import Explanation, Towards


class Part(Struct, frozen=True):
    """A route or a rule: what it is called, and its `file:line`."""

    kind: str
    name: str
    where: str


def question(case: Case) -> Question:
    """Returns the question that a case asks."""
    asked = case.spec.request
    headers = tuple(asked.headers.items())
    return Question(asked.method, asked.url, asked.identity, headers, asked.source_ip, asked.direction == "inbound")


def failures(case: Case, told: Explanation) -> list[str]:
    """Returns one sentence for each expectation that is not met."""
    expect = case.spec.expect
    answer, towards = told.answer, told.upstream
    rules = [verdict.rule for verdict in told.policies if verdict.rule]
    found: list[str] = []

    def same(what: str, expected: object, seen: object) -> None:
        if expected is not None and expected != seen:
            found.append(f"{what} is {_shown(seen)}, not {_shown(expected)}")

    same("route", expect.route, told.route.name if told.route is not None else None)
    same("allowed", expect.allowed, told.allowed)
    same("status", expect.status, answer.status if answer is not None else None)
    same("code", expect.code, answer.code if answer is not None else None)
    if expect.rule is not None and expect.rule not in rules:
        found.append(f"rule {expect.rule} does not decide, but {', '.join(rules) or 'none'}")
    if expect.upstream is not None and expect.upstream not in names(towards):
        found.append(f"upstream is {' or '.join(names(towards)) or 'none'}, not {expect.upstream}")
    found += _headers("the answer's", expect.headers, answer.headers if answer is not None else ())
    if expect.sent is not None:
        if towards is None:
            found.append("nothing is sent to an upstream")
        else:
            same("the host that is sent", expect.sent.host, towards.authority)
            same("the path that is sent", expect.sent.path, towards.target)
            found += _headers("the upstream's", expect.sent.headers, towards.headers)
    return found


def names(towards: Towards | None) -> list[str]:
    """Returns the upstreams that a request may go to."""
    if towards is None:
        return []
    return list(towards.split) or [towards.name]


def _headers(whose: str, wanted: Fields, came: tuple[tuple[str, str], ...]) -> list[str]:
    given = [(name.encode(), value.encode()) for name, value in came]
    values = fields(given, {name.encode(): (name.encode(),) for name in wanted})
    found = []
    for (name, _), condition in zip(wanted.items(), conditions(Match(headers=wanted)), strict=True):
        if not condition.holds(b"", values, {}):
            value = ", ".join(shown(value) for key, value in came if key == name)
            seen = f"it is {value!r}" if name.encode() in values else "there is none"
            found.append(f"{whose} {condition.text} does not hold: {seen}")
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in (None, "") else shown(value) if isinstance(value, str) else str(value)


def _line(document: Resource[Route], path: str) -> tuple[str, int]:
    return document.where(f"spec.policies.{Authorization.name}.{path}")


class Coverage:
    """Which routes and which authorization rules of a model have taken part in an answer."""

    def __init__(self, model: Model) -> None:
        self._untouched: dict[tuple[str, str, str], Part] = {}
        for document in model.routes:
            where = f"{document.file}:{document.line}"
            self._add(Part("route", document.name, where))
            for policy in document.spec.policies:
                if isinstance(policy, Authorization):
                    self._rules(policy.rules(partial(_line, document)))
        if "AuthorizationPolicy" in model.others:
            from l7proxy.config import istio

            rules = istio.rules(model)
            if rules is not None:
                self._rules(rules)
        self.total = len(self._untouched)

    def touch(self, told: Explanation) -> None:
        """Counts the parts that one answer came by."""
        if told.route is not None:
            self._untouched.pop(("route", told.route.name, told.route.where), None)
        for verdict in told.policies:
            self._untouched.pop(("rule", verdict.rule, verdict.where), None)

    @property
    def untouched(self) -> list[Part]:
        """The parts that no answer came by, in the order of the files."""
        return list(self._untouched.values())

    def _rules(self, rules: RuleSet) -> None:
        # A rule of an allow list that is in the shadow decides nothing, so nothing tells of it.
        for rule in (*rules.deny, *(rule for rule in rules.allow if not rule.shadow)):
            self._add(Part("rule", rule.name, rule.where))

    def _add(self, part: Part) -> None:
        self._untouched[(part.kind, part.name, part.where)] = part
