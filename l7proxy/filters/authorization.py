"""Who may call what."""

from collections.abc import Awaitable, Callable
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from l7proxy.core.errors import ProxyError
from l7proxy.core.fields import Cidr, HeaderName
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.message import Request, Response
from l7proxy.core.stats import Counter
from l7proxy.filters.authorizer import Authorizer, Clause, Rule, RuleSet, check_header, check_path
from l7proxy.identity.peer import peer_named

Pattern = Annotated[
    str,
    Meta(
        min_length=1,
        pattern=r"^(\*|\*?[^*]+|[^*]+\*)$",
        extra={"meant": "a text with at most one *, at its start or at its end"},
    ),
]
"""A text, or the part of one before or after a `*`; `*` alone is any text but none."""
Mode = Literal["ENFORCE", "SHADOW"]

SHADOW_DENIED = "shadow denied"
"""What traces say of a request that rules in the shadow would have denied."""

_DECLARED = 100
"""Rules of one route whose counters exist before they first deny."""


class Conditions(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Matches a request when every key that is written does; within a key one entry is enough."""

    identities: Annotated[
        tuple[Pattern, ...],
        Meta(
            min_length=1,
            description="SPIFFE IDs (or DNS names) of callers; `*` at an end stands for anything, alone for anybody.",
        ),
    ] = ()
    namespaces: Annotated[tuple[Pattern, ...], Meta(min_length=1, description="Kubernetes namespaces of callers.")] = ()
    source_ips: Annotated[
        tuple[Cidr, ...],
        Meta(
            min_length=1,
            description="Addresses or blocks: in `allow` the client's (the one that trusted proxies name, else the "
            "peer's), in `deny` the client's or the peer's.",
        ),
    ] = field(default=(), name="sourceIPs")
    methods: Annotated[tuple[Pattern, ...], Meta(min_length=1, description="Request methods.")] = ()
    paths: Annotated[
        tuple[Pattern, ...],
        Meta(min_length=1, description="Normalised paths without the query: `/a`, `/a/*`, `*.json`."),
    ] = ()
    headers: Annotated[
        dict[HeaderName, Annotated[tuple[Pattern, ...], Meta(min_length=1)]],
        Meta(min_length=1, description="Header fields, each with the values that match."),
    ] = {}

    def __post_init__(self) -> None:
        for pattern in self.paths:
            check_path(pattern)
        for pattern in self.identities:
            _check_identity(pattern)
        for name in self.headers:
            check_header(name)

    def clauses(self, address: Literal["clientIP", "anyIP"]) -> tuple[Clause, ...]:
        """Returns what must hold, as the authorizer takes it; `address` is the one that `sourceIPs` speak of."""
        clauses = [
            Clause("identity", self.identities),
            Clause("namespace", self.namespaces),
            Clause(address, self.source_ips),
            Clause("method", self.methods),
            Clause("path", self.paths),
            *(Clause("header", values, key=name) for name, values in self.headers.items()),
        ]
        return tuple(clause for clause in clauses if clause.values)


class AccessRule(Conditions, frozen=True):
    """Matches a request when every key that is written does; within a key one entry is enough."""

    name: Annotated[str, Meta(description="What logs and metrics call it; by default its place, like `allow[0]`.")] = ""
    mode: Annotated[Mode, Meta(description="A rule in SHADOW denies nothing: what it would deny is logged.")] = (
        "ENFORCE"
    )


class Authorization(Filter, frozen=True):
    """Answers 403 `denied` to callers who may not do what they ask for.

    Any matching `deny` rule denies. Then, if there are `allow` rules, one of them must match; an empty `allow` list
    denies everybody. The client learns no reason: log and span name the rule with its file and line. In SHADOW nothing
    is denied; `l7proxy_shadow_denied_total` and the log tell what would have been.
    """

    name: ClassVar[str] = "authorization"

    allow: Annotated[tuple[AccessRule, ...] | None, Meta(description="Who may; without it everybody.")] = None
    deny: Annotated[tuple[AccessRule, ...], Meta(description="Who may not, whatever `allow` says.")] = ()
    mode: Annotated[Mode, Meta(description="SHADOW puts every rule of this policy in the shadow.")] = "ENFORCE"

    @property
    def by_path(self) -> bool:
        """Whether a rule depends on the path."""
        return any(rule.paths for rule in (*(self.allow or ()), *self.deny))

    @property
    def request_fields(self) -> tuple[str, ...]:
        return tuple(name for rule in (*(self.allow or ()), *self.deny) for name in rule.headers)

    def rules(self, line: Callable[[str], tuple[str, int]]) -> RuleSet:
        """Returns the rules as the authorizer takes them; `line` says where a key of this policy stands."""
        allow = tuple(self._rule(rule, f"allow[{n}]", line, "clientIP") for n, rule in enumerate(self.allow or ()))
        deny = tuple(self._rule(rule, f"deny[{n}]", line, "anyIP") for n, rule in enumerate(self.deny))
        enforced = self.allow is not None and self.mode == "ENFORCE"
        return RuleSet(
            deny=deny,
            allow=allow,
            # A list whose rules are all in the shadow is in the shadow as a whole; an empty one denies everybody.
            allows=enforced and (not allow or any(not rule.shadow for rule in allow)),
            shadow_allows=self.allow is not None,
            where=_where(line("allow" if self.allow is not None else "")),
        )

    def wrap(self, inner: Handler, build: Build) -> Handler:
        return guard(Authorizer(self.rules(build.line)), inner, build, self.name)

    def _rule(
        self,
        rule: AccessRule,
        place: str,
        line: Callable[[str], tuple[str, int]],
        address: Literal["clientIP", "anyIP"],
    ) -> Rule:
        return Rule(
            rule.name or place,
            ((rule.clauses(address),),),
            rule.mode == "SHADOW" or self.mode == "SHADOW",
            _where(line(place)),
        )


def guard(authorizer: Authorizer, inner: Handler, build: Build, policy: str) -> Handler:
    """Returns the handler that lets through to `inner` what the authorizer allows; `policy` is its name in traces."""
    rules = authorizer.rules
    route = build.route.name
    allows = authorizer.allows
    stats, log = build.stats, build.log

    def denied(rule: str) -> Counter:
        return stats.counter("l7proxy_denied_total", "Requests denied, by rule", l7proxy_route=route, rule=rule)

    def shadow_denied(rule: str) -> Counter:
        return stats.counter(
            "l7proxy_shadow_denied_total",
            "Requests that rules in the shadow would have denied, by rule",
            l7proxy_route=route,
            rule=rule,
        )

    for rule in rules.deny[:_DECLARED]:
        (shadow_denied if rule.shadow else denied)(rule.name)
    if rules.shadow_allows:
        (denied if rules.allows else shadow_denied)(_NO_RULE)

    def audit(request: Request) -> None:
        for rule in authorizer.audited(request):
            stats.counter(
                "l7proxy_audited_total", "Requests that AUDIT rules matched", l7proxy_route=route, rule=rule.name
            ).value += 1
            log("info", "audit", route=route, rule=rule.name, where=rule.where, **_describe(request))

    def decide_in_full(request: Request) -> None:
        """Counts, logs and traces the verdict; raises ProxyError for a denial."""
        if rules.audit:
            audit(request)
        verdict = authorizer.decide(request)
        trace = request.trace
        if verdict.outcome == "DENY":
            name, detail, where = _tell(verdict.rule, rules)
            denied(name).value += 1
            if trace is not None:
                trace.verdict(policy, name, "denied", where)
            raise ProxyError("denied", detail)
        if verdict.shadow == "DENY":
            name, detail, where = _tell(verdict.shadow_rule, rules)
            shadow_denied(name).value += 1
            log("warning", "shadow denial", route=route, rule=name, where=where, **_describe(request))
            if trace is not None:
                trace.verdict(policy, name, SHADOW_DENIED, where)
        if trace is not None:
            by = verdict.rule
            trace.verdict(policy, by.name if by else "no rule denies", "allowed", by.where if by else rules.where)

    def handle(request: Request) -> Awaitable[Response]:
        # Nothing is to be said of a request that is simply allowed, which is nearly every one.
        if request.trace is not None or not allows(request):
            decide_in_full(request)
        return inner(request)

    return handle


_NO_RULE = "no allow rule"


def _check_identity(pattern: str) -> None:
    """Raises ValueError for what is neither a SPIFFE ID nor a DNS name, and so nobody's."""
    if "*" not in pattern:
        peer_named(pattern)


def _tell(rule: Rule | None, rules: RuleSet) -> tuple[str, str, str]:
    """Returns (name, sentence, place) of what denies."""
    if rule is None:
        return _NO_RULE, f"no allow rule matches, at {rules.where}", rules.where
    return rule.name, f"rule {rule.name} at {rule.where}", rule.where


def _describe(request: Request) -> dict[str, str]:
    return {
        "peer": request.peer.identity,
        "source": request.source,
        "method": request.method.decode("latin-1"),
        "path": request.path.decode("latin-1"),
        **request.names(),
    }


def _where(place: tuple[str, int]) -> str:
    file, line = place
    return f"{file}:{line}" if line else file
