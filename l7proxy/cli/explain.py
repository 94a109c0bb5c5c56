"""`l7proxy explain`: what a configuration does with one request, and why."""

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Sequence

import msgspec

from l7proxy.cli import flags
from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from l7proxy.core.expanded import published
from l7proxy.core.fields import duration, show_duration
from l7proxy.core.slices import finish
from l7proxy.proxy.debug import HEADER, LONGEST, read_key, sign
from l7proxy.proxy.decision import Asked, Question, field
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation, Timeouts

_MADE = ("x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
"""Fields that every request gets on the way."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("-c", "--config", metavar="PATH", action="append", help="a YAML file or a folder; repeatable")
    asked.add_argument(
        "--sign",
        metavar="KEY",
        help="print the header with which this very request asks a sidecar that has the key in its `debug.key`",
    )
    flags.configure(parser)
    parser.add_argument("method", metavar="METHOD", help="like GET")
    parser.add_argument("url", metavar="URL", help="like https://orders.example.com/v1/orders/7, or a path alone")
    parser.add_argument("--identity", metavar="ID", default="", help="the caller's SPIFFE ID or DNS name")
    parser.add_argument(
        "--header", metavar="FIELD", action="append", default=[], type=_field, help="like 'x-tenant: blue'; repeatable"
    )
    parser.add_argument("--source-ip", metavar="IP", default="127.0.0.1", help="the caller's address")
    parser.add_argument(
        "--direction", choices=("inbound", "outbound"), default="inbound", help="which listener is asked"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--valid",
        metavar="DURATION",
        type=_duration,
        default=60.0,
        help=f"how long a signed header holds, at most {show_duration(LONGEST)} (default: 1m)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the decision; returns 1 when the configuration is wrong, 2 for a request that no client can send."""
    inbound = args.direction == "inbound"
    question = Question(args.method, args.url, args.identity, tuple(args.header), args.source_ip, inbound)
    try:
        if args.sign is not None:
            print(_signed(args.sign, question, args.valid))
            return 0
        explanation = asyncio.run(_ask(load(args.config, flags.overrides(args), elsewhere=True), question))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"l7proxy explain: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"l7proxy explain: {args.sign}: {error.strerror}", file=sys.stderr)
        return 1
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(published(explanation)), indent=2).decode())
    else:
        print("\n".join(render(explanation)))
    return 0


async def _ask(model: Model, question: Question) -> Explanation:
    return await finish(explaining(model)).ask(question)


def _signed(path: str, question: Question, seconds: float) -> str:
    """Returns the header field with which a request may ask for `seconds`."""
    asked = Asked(question)
    expiry = int(time.time() + seconds)
    value = sign(read_key(path), asked.method, asked.authority, asked.path, asked.query, expiry)
    return f"{HEADER.decode()}: {value.decode()}"


def command(args: argparse.Namespace, configs: Sequence[str], asked: Question) -> str:
    """Returns the command that explains a request by these configurations, and by the flags that `args` hold."""
    words = ["l7proxy", "explain", *(word for config in configs for word in ("-c", config))]
    for flag in flags.FLAGS:
        if (value := getattr(args, flag.name)) is not None:
            words += [f"--{flag.name}", value]
    if asked.identity:
        words += ["--identity", asked.identity]
    for name, value in asked.headers:
        words += ["--header", f"{name}: {value}"]
    if asked.source != "127.0.0.1":
        words += ["--source-ip", asked.source]
    if not asked.inbound:
        words += ["--direction", "outbound"]
    # A client may have chosen a method that begins like an option.
    return shlex.join([*words, *(["--"] if asked.method.startswith("-") else []), asked.method, asked.url])


def render(explanation: Explanation) -> list[str]:
    """Returns the lines that tell a decision to a reader."""
    explanation = published(explanation)
    caller = explanation.identity or "a caller without a certificate"
    request = f"{explanation.method} {explanation.scheme}://{explanation.authority}{explanation.path}"
    lines = [line("request", f"{request} ({explanation.direction})")]
    lines.append(line("from", f"{caller} at {explanation.source}"))
    lines += reasons(explanation)
    answer = explanation.answer
    if answer is not None:
        lines.append(line("answer", _answer(explanation)))
        lines += _shown(answer.headers)
    return lines


def reasons(explanation: Explanation) -> list[str]:
    """Returns the lines between the request and its answer."""
    lines = [line("note", note) for note in explanation.notes]
    if explanation.refused:
        return [*lines, line("refused", explanation.refused)]
    if explanation.host:
        lines.append(line("host", explanation.host))
    lines += [
        line("lost", f"{other.route} ({other.pattern}), {other.where}: {other.why}")
        for other in explanation.passed_over
    ]
    route = explanation.route
    if route is None:
        lines.append(line("route", "none"))
    elif route.name:
        lines.append(line("route", f"{route.name} ({route.pattern}), {route.where}"))
    else:
        lines.append(line("route", "none is written: the default one"))
    width = max((len(verdict.policy) for verdict in explanation.policies), default=0)
    for verdict in explanation.policies:
        text = f"{verdict.policy:{width}}  {verdict.outcome}"
        text += f": {verdict.rule}" if verdict.rule else ""
        lines.append(line("policy", f"{text}, {verdict.where}" if verdict.where else text))
    return lines + _upstream(explanation)


def _upstream(explanation: Explanation) -> list[str]:
    towards = explanation.upstream
    if towards is None:
        return []
    lines = []
    if bounds := _timeouts(explanation.timeouts):
        lines.append(line("timeouts", bounds))
    if explanation.retries is not None:
        lines.append(line("retries", f"{explanation.retries.attempts} on {', '.join(explanation.retries.on)}"))
    addresses = [f"{end.address} (ejected)" if end.ejected else end.address for end in towards.endpoints]
    manner = f" by {towards.balance}" if len(addresses) > 1 else ""
    name = towards.name
    if towards.split:
        name += f" (shares: {', '.join(f'{upstream} {weight}' for upstream, weight in towards.split.items())})"
    lines.append(line("upstream", f"{name}: {', '.join(addresses) or 'no endpoint'}{manner} ({towards.protocol})"))
    lines.append(line("asked", f"{explanation.method} {towards.target}, host {towards.authority}"))
    return lines + _shown(towards.headers)


def _shown(headers: tuple[tuple[str, str], ...]) -> list[str]:
    return [line("", f"{name}: {value}") for name, value in headers if name not in _MADE]


def _answer(explanation: Explanation) -> str:
    answer = explanation.answer
    assert answer is not None
    if answer.by == "upstream":
        return "the upstream's"
    if answer.code:
        return f"{answer.status} {answer.code}: {answer.detail}"
    return f"{answer.status} by the {answer.by}"


def _timeouts(timeouts: Timeouts) -> str:
    named = (("connect", timeouts.connect), ("request", timeouts.request), ("per try", timeouts.per_try))
    bounds = [*named, ("idle", timeouts.idle)]
    return ", ".join(f"{name} {show_duration(seconds)}" for name, seconds in bounds if seconds is not None)


def line(label: str, text: str) -> str:
    """Returns one line of what is told."""
    return f"{label:10}{text}"


def _duration(text: str) -> float:
    try:
        seconds = duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not between 1s and {show_duration(LONGEST)}")
    return seconds


def _field(text: str) -> tuple[str, str]:
    try:
        return field(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
