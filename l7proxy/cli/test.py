"""`l7proxy test`: holds a configuration to the cases and invariants of test files, without a network."""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from xml.etree import ElementTree

from msgspec import Struct

from l7proxy.cli import flags
from l7proxy.cli.explain import command, render
from l7proxy.config.cases import Case, Invariant, read_tests
from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from l7proxy.core.expanded import concealed, shown
from l7proxy.core.slices import finish
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.invariants import prove
from l7proxy.proxy.verify import Coverage, failures, question


class Result(Struct, frozen=True):
    """What came of one case or invariant: nothing in `failed` when it holds, else `trace` tells the decision.

    `asked` is how many requests it took.
    """

    test: Case | Invariant
    failed: list[str]
    trace: list[str]
    seconds: float
    asked: int = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.usage = "l7proxy test [-h] [--app URL ...] [--junit FILE] CONFIG TESTS...  |  -c CONFIG... TESTS..."
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="the configuration, a YAML file or a folder, then test files or folders of them",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="CONFIG",
        action="append",
        default=[],
        help="a configuration, repeatable; every PATH is then one of tests",
    )
    flags.configure(parser)
    parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML too")


def run(args: argparse.Namespace) -> int:
    """Prints every failure with its decision; returns 1 when there is one, or a mistake in a file."""
    config, tests = (args.config, args.paths) if args.config else (args.paths[:1], args.paths[1:])
    if not tests:
        print("l7proxy test: name the configuration and the test files", file=sys.stderr)
        return 2
    try:
        model = load(config, flags.overrides(args), elsewhere=True)
        cases, invariants = read_tests(tests)
        started = time.perf_counter()
        coverage = Coverage(model)
        results = asyncio.run(_run(model, cases, invariants, coverage, partial(command, args, config)))
        seconds = time.perf_counter() - started
        if args.junit:
            _junit(results, args.junit)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"l7proxy test: {args.junit}: {error.strerror}", file=sys.stderr)
        return 1
    failed = [result for result in results if result.failed]
    for result in failed:
        print("\n".join(_told(result)), end="\n\n")
    total = _tally(results, bool(failed))
    end = f"{f'{total} failed' if failed else f'ok: {total}'} in {seconds * 1000:.0f} ms"
    if cases:
        for part in coverage.untouched:
            print(f"{part.where}: no case touches {part.kind} {part.name}")
        end += f", {coverage.total - len(coverage.untouched)} of {coverage.total} routes and rules touched"
    print(end)
    return 1 if failed else 0


def _tally(results: Sequence[Result], failed: bool) -> str:
    """Returns how many cases and invariants there were, and how many of them failed if any did."""
    parts = []
    for kind, name in ((Case, "case"), (Invariant, "invariant")):
        found = [result for result in results if isinstance(result.test, kind)]
        if not found:
            continue
        text = _count(len(found), name)
        if failed:
            text = f"{sum(bool(result.failed) for result in found)} of {text}"
        if kind is Invariant:
            text += f" ({_count(sum(result.asked for result in found), 'request')})"
        parts.append(text)
    return " and ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


async def _run(
    model: Model,
    cases: Sequence[Case],
    invariants: Sequence[Invariant],
    coverage: Coverage,
    explain: Callable[[Question], str],
) -> list[Result]:
    explainer = finish(explaining(model))
    results = []
    for case in cases:
        started = time.perf_counter()
        try:
            told = await explainer.ask(question(case))
        except ValueError as error:
            results.append(Result(case, [f"request: {error}"], [], 0.0))
            continue
        coverage.touch(told)
        failed = failures(case, told)
        results.append(Result(case, failed, render(told) if failed else [], time.perf_counter() - started))
    for invariant in invariants:
        started = time.perf_counter()
        proof = await prove(explainer, invariant.spec)
        why, trace = [proof.why] if proof.why else [], []
        if proof.example is not None:
            why.append(shown(concealed(explain(proof.example[0]), model.expanded)))
            trace = render(proof.example[1])
        results.append(Result(invariant, why, trace, time.perf_counter() - started, proof.asked))
    return results


def _told(result: Result) -> list[str]:
    test = result.test
    head = [f"{test.file}:{test.line}: FAILED {test.name}", *(f"  {why}" for why in result.failed)]
    return head + [f"    {line}" for line in result.trace]


def _junit(results: Sequence[Result], path: str) -> None:
    failed = sum(bool(result.failed) for result in results)
    seconds = f"{sum(result.seconds for result in results):.6f}"
    suite = ElementTree.Element(
        "testsuite", name="l7proxy test", tests=str(len(results)), failures=str(failed), errors="0", time=seconds
    )
    for result in results:
        test = result.test
        attributes = {"classname": test.file, "name": test.name, "file": test.file, "line": str(test.line)}
        element = ElementTree.SubElement(suite, "testcase", attributes, time=f"{result.seconds:.6f}")
        if result.failed:
            failure = ElementTree.SubElement(element, "failure", message="; ".join(result.failed))
            failure.text = "\n".join(_told(result))
    ElementTree.ElementTree(suite).write(path, "utf-8", xml_declaration=True)
