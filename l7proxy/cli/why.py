"""`l7proxy why`: what happened to a request that is over, and which rule of which configuration decided."""

import argparse
import asyncio
import sys
from collections.abc import Iterator

import msgspec

from l7proxy.cli import asking
from l7proxy.cli.asking import NoAnswer, Sidecar, printable
from l7proxy.cli.explain import line, reasons
from l7proxy.config.load import load
from l7proxy.core.expanded import published
from l7proxy.core.slices import finish
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.why import Explain, Tried, Why, account
from l7proxy.telemetry.access import Record, read


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "id", metavar="ID", nargs="?", help="its request id or trace id; without one, what failed last is listed"
    )
    asked.add_argument(
        "--log",
        metavar="LINE",
        help="its line of the JSON access log, of any day, explained by the configuration that it names while the "
        "sidecar keeps that; - reads lines from standard input",
    )
    parser.add_argument(
        "--against",
        metavar="PATH",
        action="append",
        help="explain --log by this configuration, such as an earlier commit, and ask no sidecar; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each request")
    asking.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what is known; returns 1 when nothing is, or nobody answers."""
    if args.against is not None and args.log is None:
        print("l7proxy why: --against is for --log", file=sys.stderr)
        return 2

    def work(sidecar: Sidecar) -> None:
        if args.log is not None:
            accounts = _of(sidecar, args.log) if args.against is None else _against(args.against, args.log)
            for number, why in enumerate(accounts):
                _print([why], args.json, number > 0)
        elif args.id is not None:
            found = sidecar.get("/why", list[Why], [("id", args.id)])
            if not found:
                raise NoAnswer(f"the sidecar at {sidecar.address} remembers no request {args.id}")
            _print(found, args.json)
        else:
            for failed in sidecar.get("/failures", list[Record]):
                print(msgspec.json.encode(failed).decode() if args.json else printable(_listed(failed)))

    return asking.ask("why", args, work)


def _lines(given: str) -> Iterator[str]:
    if given != "-":
        yield given
        return
    for text in sys.stdin:
        if text.strip():
            yield text.strip()


def _of(sidecar: Sidecar, given: str) -> Iterator[Why]:
    """Lets a sidecar account for lines."""
    for text in _lines(given):
        _read(text)
        yield sidecar.get("/why/line", Why, [("line", text)])


def _against(paths: list[str], given: str) -> Iterator[Why]:
    """Accounts for lines by the configuration in files."""

    async def compile() -> Explain:
        explainer = finish(explaining(load(paths, elsewhere=True)))
        return lambda question, version: explainer.ask(question)

    with asyncio.Runner() as runner:
        explain = runner.run(compile())
        for text in _lines(given):
            yield runner.run(account(_read(text), explain))


def _read(text: str) -> Record:
    try:
        return read(text.encode())
    except ValueError as error:
        raise NoAnswer(str(error)) from None


def _print(found: list[Why], as_json: bool, more: bool = False) -> None:
    for why in map(published, found):
        if as_json:
            print(msgspec.json.encode(why).decode())
            continue
        if more:
            print()
        print("\n".join(map(printable, render(why))))
        more = True


def render(why: Why) -> list[str]:
    """Returns the lines that tell a reader what happened, and then what was decided."""
    record = why.request
    caller = record.peer or "a caller without a certificate"
    url = f"{record.scheme}://{record.authority}{record.path}"
    ids = [f"request id {record.request_id}" if record.request_id else ""]
    ids += [f"trace {record.trace_id}" if record.trace_id not in ("", record.request_id) else ""]
    lines = [
        line("request", f"{record.method} {url} ({record.direction}, HTTP/{record.protocol})"),
        line("from", f"{caller} at {record.source}"),
        line("ended", ", ".join(filter(None, [record.time, *ids, f"configuration {record.config_version}"]))),
        line("answer", _answer(record)),
        line("took", _times(record)),
    ]
    lines += [line(f"attempt {number}", _attempt(tried)) for number, tried in enumerate(why.attempts, 1)]
    lines += [line("note", note) for note in why.notes]
    return lines + (reasons(why.explanation) if why.explanation is not None else [])


def _answer(record: Record) -> str:
    answer = " ".join(map(str, filter(None, [record.status, record.code, f"({record.flags})" if record.flags else ""])))
    if record.grpc_status is not None:
        answer += f", gRPC status {record.grpc_status}"
    return f"{answer}: {record.detail}" if record.detail else answer


def _times(record: Record) -> str:
    return f"{record.duration_ms:g} ms, {record.bytes_in} bytes in, {record.bytes_out} out"


def _attempt(tried: Tried) -> str:
    outcome = str(tried.status) if tried.status else tried.code
    parts = [f"{tried.upstream} at {tried.endpoint}: {outcome} after {tried.duration_ms:g} ms"]
    if tried.queue_ms:
        parts.append(f"begun at {tried.queue_ms:g} ms")
    if tried.connect_ms:
        parts.append(f"connected in {tried.connect_ms:g} ms")
    if tried.first_byte_ms is not None:
        parts.append(f"first byte in {tried.first_byte_ms:g} ms")
    if tried.reason:
        parts.append(f"tried again for {tried.reason}")
    return ", ".join(parts)


def _listed(record: Record) -> str:
    kind = record.code or record.flags or "-"
    request = f"{record.method or '-'} {record.authority}{record.path}"
    return f"{record.time}  {record.status} {kind:20} {request}  {record.peer or record.source}  {record.request_id}"
