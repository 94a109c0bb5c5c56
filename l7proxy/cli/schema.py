"""`l7proxy schema`: what the configuration may hold, for editors and for readers."""

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument(
        "--format",
        choices=("json", "markdown"),
        default="json",
        help="the JSON Schema for editors, or the reference for readers (default: json)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the schema of one document."""
    if args.format == "markdown":
        from l7proxy.config.reference import reference

        print(reference(), end="")
    else:
        from l7proxy.config.schema import schema

        print(json.dumps(schema(), indent=2))
    return 0
