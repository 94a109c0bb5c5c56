"""`python -m bench`: runs the scenarios side by side and writes `bench/results/`; `python -m bench soak` stays on."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from bench import machine, report, soak
from bench.compare import Plan
from bench.contenders import ALL as CONTENDERS
from bench.lab import SIZES, Lab
from bench.model import Result
from bench.process import LOAD_CORE, BenchError
from bench.scenarios import ALL as SCENARIOS

TOOLS = ("taskset", "nginx", "haproxy", "wrk", "h2load", "curl", "cc")
Job = tuple[str, str, Callable[[Lab], Result]]


def main() -> int:
    """Returns 0 when all scenarios ran and all proofs held, met goals or not; 1 when one failed; 2 for usage."""
    options = _options()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        print(f"not installed: {' '.join(missing)} (bench/README.md names the packages)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is left, and ends what it started
    os.sched_setaffinity(0, {LOAD_CORE})
    if options.command == "soak":
        name, how = options.name or "soak", f"{options.minutes:g} minutes"
        jobs: list[Job] = [("soak", "", lambda lab: soak.run(lab, options.minutes))]
    else:
        plan = _plan(options)
        name, how = options.name or "latest", f"{plan.rounds} rounds of {plan.seconds} s, interleaved; medians"
        wanted = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
        jobs = [(each.name, each.title, partial(each.run, plan=plan)) for each in wanted]
    facts, results = _run(jobs, {**machine.facts(), "run": how})
    print(f"\nwritten: {report.write(name, facts, results)}")
    return 1 if any(result.errors for result in results) else 0


def _run(jobs: Sequence[Job], facts: dict[str, str]) -> tuple[dict[str, str], list[Result]]:
    """Runs each job in one lab and prints what it finds; returns the facts with the ceilings, and the results."""
    results: list[Result] = []
    with Lab() as lab:
        for size in SIZES:
            direct = lab.direct(size, 2)
            rate = f"{direct.requests / direct.seconds:,.0f} requests/s"
            facts[f"ceiling {size}"] = f"{rate} without a proxy, generator and backend sharing the load core"
        for key, value in facts.items():
            print(f"{key}: {value}", flush=True)
        for name, title, run in jobs:
            began = time.monotonic()
            try:
                result = run(lab)
            except BenchError as error:
                result = Result(name, title, errors={name: str(error)})
            results.append(result)
            print("\n" + "\n".join(report.section(result)))
            for finding in result.findings if result.rows else ():
                print(f"- {report.plain(finding)}")
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return facts, results


def _plan(options: argparse.Namespace) -> Plan:
    contenders = frozenset(options.contenders)
    return Plan(1, 2, contenders) if options.quick else Plan(options.rounds, options.seconds, contenders)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("command", nargs="?", choices=["compare", "soak"], default="compare")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--contenders", nargs="+", choices=[one.name for one in CONTENDERS], default=[], metavar="NAME", help="a subset"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: a first look, no figures to quote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load in each round of each contender")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak")
    parser.add_argument("--name", help="of the files in bench/results/; by default latest or soak")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
