"""`python -m bench`: runs the scenarios side by side and writes `bench/results/`; `python -m bench soak` stays on."""

import argparse
import os
import sys
import time

from bench import machine, report
from bench.compare import Plan
from bench.contenders import ALL as CONTENDERS
from bench.lab import SIZES, Lab
from bench.load import Load
from bench.model import Result
from bench.process import LOAD_CORE, BenchError
from bench.scenarios import ALL as SCENARIOS


def main() -> int:
    """Returns 0 when all scenarios ran and all proofs held, met goals or not; 1 when one failed; 2 for usage."""
    options = _options()
    os.sched_setaffinity(0, {LOAD_CORE})
    plan = Plan(
        rounds=1 if options.quick else options.rounds,
        seconds=2 if options.quick else options.seconds,
        contenders=frozenset(options.contenders),
    )
    wanted = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    facts = {**machine.facts(), "run": f"{plan.rounds} rounds of {plan.seconds} s, interleaved; medians"}
    results: list[Result] = []
    with Lab() as lab:
        for size in SIZES:
            direct: Load = lab.direct(size, 2)
            rate = f"{direct.requests / direct.seconds:,.0f} requests/s"
            facts[f"ceiling {size}"] = f"{rate} without a proxy, generator and backend sharing the load core"
        for key, value in facts.items():
            print(f"{key}: {value}", flush=True)
        for scenario in wanted:
            began = time.monotonic()
            try:
                result = scenario.run(lab, plan)
            except BenchError as error:
                result = Result(scenario.name, scenario.title, errors={scenario.name: str(error)})
            results.append(result)
            print("\n" + "\n".join(report.section(result)))
            for finding in result.findings:
                print(f"  {finding.text}: {finding.value:,.2f} {finding.unit} {finding.goal} {_verdict(finding.met)}")
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
    print(f"\nwritten: {report.write(options.name, facts, results)}")
    return 1 if any(result.errors for result in results) else 0


def _verdict(met: bool | None) -> str:
    return {None: "", True: "met", False: "MISSED"}[met]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--contenders", nargs="+", choices=[one.name for one in CONTENDERS], default=[], metavar="NAME", help="a subset"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: a first look, no figures to quote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load in each round of each contender")
    parser.add_argument("--name", default="latest", help="of the files in bench/results/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
