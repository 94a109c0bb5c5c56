"""`python -m tests.fuzz [--seconds N] [--seed N] [TARGET ...]`: runs every fuzz target of this package in turn.

A target is a module with `run(seconds, seed) -> int`: it returns how many inputs it tried, and raises with the input in
the message when one breaks a promise.
"""

import argparse
import importlib
import pkgutil
import sys
import time

import tests.fuzz


def targets() -> list[str]:
    """Returns the names of the modules of this package that can be run."""
    names = [module.name for module in pkgutil.iter_modules(tests.fuzz.__path__)]
    return [name for name in names if not name.startswith(("_", "test_"))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feeds hostile bytes to the codecs.")
    parser.add_argument("--seconds", type=float, default=60, help="how long to run, shared by the targets")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="repeats a run")
    parser.add_argument("target", nargs="*", choices=[[], *targets()], help="which targets to run; all by default")
    options = parser.parse_args()
    chosen = options.target or targets()
    for name in chosen:
        print(f"{name}: {options.seconds / len(chosen):.0f} s, seed {options.seed}", flush=True)
        tried = importlib.import_module(f"tests.fuzz.{name}").run(options.seconds / len(chosen), options.seed)
        print(f"{name}: {tried} inputs, no promise broken", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
