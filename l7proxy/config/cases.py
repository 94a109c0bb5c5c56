"""Policy tests as files: cases, each a request and what becomes of it, and invariants, which speak of every request."""

from collections.abc import Sequence
from typing import Annotated, Literal, Union

from msgspec import Meta, field

from l7proxy.config.decode import decode
from l7proxy.config.load import contents, expand
from l7proxy.config.model import Part, TextMatch, doc
from l7proxy.config.scalars import INVALID, Notes
from l7proxy.config.yaml import chunks, parse
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.fields import HeaderName, HeaderValue, HostPattern, Method
from l7proxy.core.slices import finish
from l7proxy.filters.authorization import Conditions

Status = Annotated[int, Meta(ge=100, le=599)]
Fields = dict[HeaderName, Union[HeaderValue, TextMatch]]


class CaseRequest(Part, frozen=True):
    """A request that nobody sends."""

    url: Annotated[str, doc("Like `https://orders.example.com/v1`; a path alone is asked of `localhost`.")]
    method: Annotated[Method, doc("The method.")] = "GET"
    identity: Annotated[str, doc("What the caller's certificate says: a SPIFFE ID or a DNS name.")] = ""
    headers: Annotated[dict[HeaderName, HeaderValue], doc("Its header fields.")] = field(default_factory=dict)
    source_ip: Annotated[str, doc("The caller's address.")] = field(default="127.0.0.1", name="sourceIP")
    direction: Annotated[Literal["inbound", "outbound"], doc("Which listener is asked.")] = "inbound"


class ExpectSent(Part, frozen=True):
    """What the upstream is asked, after rewrites and edits."""

    host: Annotated[str | None, doc("The host.")] = None
    path: Annotated[str | None, doc("The path with its query.")] = None
    headers: Annotated[Fields, doc("Header fields, by name: a value or a condition.")] = field(default_factory=dict)


class Expect(Part, frozen=True):
    """What is to become of the request. What is not written may be anything."""

    route: Annotated[str | None, doc("The name of the Route that takes it.")] = None
    allowed: Annotated[
        bool | None, doc("Whether the proxy lets it pass, to an upstream or the route's own answer.")
    ] = None
    status: Annotated[Status | None, doc("The status of the answer; upstreams are taken to answer 200.")] = None
    code: Annotated[str | None, doc("The code of the proxy's own refusal, like `denied`.")] = None
    rule: Annotated[str | None, doc("The name of the rule that decides, like `allow[0]`.")] = None
    upstream: Annotated[str | None, doc("Where it goes; of a split any part with a weight.")] = None
    headers: Annotated[Fields, doc("Header fields of the answer, by name: a value or a condition.")] = field(
        default_factory=dict
    )
    sent: Annotated[ExpectSent | None, doc("What the upstream is asked.")] = None


class CaseSpec(Part, frozen=True):
    """One case."""

    request: Annotated[CaseRequest, doc("What is asked.")]
    expect: Annotated[Expect, doc("What is to become of it.")]
    name: Annotated[str, doc("What reports call it; by default its method and URL.")] = ""


class Requests(Conditions, frozen=True):
    """Requests by the words of an authorization rule, and by host."""

    hosts: Annotated[tuple[HostPattern, ...], doc("Hosts: exact, `*.suffix` or `*`.")] = ()


class Claim(Requests, frozen=True):
    """The requests that an invariant speaks of."""

    unless: Annotated[Requests | tuple[Requests, ...], doc("Those that are excepted; a list for several kinds.")] = ()
    to: Annotated[str | None, doc("The upstream that is meant; by default any, and a route's own answer.")] = None
    direction: Annotated[Literal["inbound", "outbound"], doc("Which listener is asked.")] = "inbound"

    def __post_init__(self) -> None:
        super().__post_init__()
        if Requests() in self.exceptions:
            raise ValueError("unless: names no condition, so that every request would be excepted")

    @property
    def exceptions(self) -> tuple[Requests, ...]:
        return self.unless if isinstance(self.unless, tuple) else (self.unless,)


class InvariantSpec(Part, frozen=True):
    """What holds for every request, whichever it is."""

    exactly_one = (("never", "always"),)

    name: Annotated[str, doc("What reports call it.", min_length=1)]
    never: Annotated[Claim | None, doc("None of these requests is allowed.")] = None
    always: Annotated[Claim | None, doc("Each of these requests is allowed.")] = None

    @property
    def claim(self) -> Claim:
        found = self.never or self.always
        assert found is not None
        return found


class Suite(Part, frozen=True):
    """One document of a test file."""

    cases: Annotated[tuple[CaseSpec, ...], Meta(min_length=1, description="Single requests.")] = ()
    invariants: Annotated[tuple[InvariantSpec, ...], Meta(min_length=1, description="All requests.")] = ()

    def __post_init__(self) -> None:
        if not self.cases and not self.invariants:
            raise ValueError("there are neither cases nor invariants")


class Case(Part, frozen=True):
    """One case and where it stands."""

    spec: CaseSpec
    file: str
    line: int

    @property
    def name(self) -> str:
        return self.spec.name or f"{self.spec.request.method} {self.spec.request.url}"


class Invariant(Part, frozen=True):
    """One invariant and where it stands."""

    spec: InvariantSpec
    file: str
    line: int

    @property
    def name(self) -> str:
        return self.spec.name


def read_tests(paths: Sequence[str]) -> tuple[list[Case], list[Invariant]]:
    """Returns what the files and folders at `paths` hold; raises ConfigError with every mistake in them."""
    problems: list[Problem] = []
    cases: list[Case] = []
    invariants: list[Invariant] = []
    for file in expand(paths, problems):
        before = len(cases) + len(invariants) + len(problems)
        try:
            for chunk in chunks(contents(file), file):
                node = finish(parse(chunk, file)) if chunk is not None else None
                if chunk is None or node is None:
                    continue
                notes = Notes(file, "", chunk.offset)
                suite = decode(node, Suite, "", notes)
                problems += notes.problems
                if suite is not INVALID:
                    lines = {path: chunk.offset + line for path, line in notes.lines.items()}
                    cases += [Case(spec, file, lines[f"cases[{n}]"]) for n, spec in enumerate(suite.cases)]
                    invariants += [
                        Invariant(spec, file, lines[f"invariants[{n}]"]) for n, spec in enumerate(suite.invariants)
                    ]
        except ConfigError as error:
            problems += error.problems
        if len(cases) + len(invariants) + len(problems) == before:
            problems.append(Problem(file, 1, "there is no test in this file"))
    problems += [
        Problem(case.file, case.line, "expect: nothing is expected here")
        for case in cases
        if case.spec.expect == Expect()
    ]
    if problems:
        raise ConfigError(problems)
    return cases, invariants
