"""`l7proxy certs`: a certificate authority for laptops and demos, and certificates of workloads from it."""

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from l7proxy.identity.dev import DevCa
from l7proxy.identity.spiffe import parse

_LIFETIME = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    verbs = parser.add_subparsers(dest="what", metavar="dev", required=True)
    dev = verbs.add_parser(
        "dev",
        help="make a development CA, and a certificate for each ID",
        description="Makes the development CA in FOLDER if there is none, and for each SPIFFE ID a folder beneath it, "
        "named like the ID's last part, with tls.crt, tls.key and ca.crt. Not for production: the CA's key lies there.",
    )
    dev.add_argument("ids", metavar="ID", nargs="*", help="a SPIFFE ID, like spiffe://demo/ns/shop/sa/orders")
    dev.add_argument("--out", metavar="FOLDER", default="certs", help="where to write (default: certs)")
    dev.add_argument("--trust-domain", metavar="NAME", help="the CA's trust domain (default: that of the first ID)")
    dev.add_argument(
        "--name",
        metavar="HOST",
        action="append",
        default=[],
        help="a DNS name or address in each certificate; repeatable",
    )
    dev.add_argument(
        "--lifetime", metavar="TIME", type=_lifetime, default="30d", help="like 30d, 12h or 5m (default: 30d)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the files and says where they are; returns 1 when that is not possible."""
    folder = Path(args.out)
    first = args.ids[0].removeprefix("spiffe://").partition("/")[0] if args.ids else "demo"
    domain = args.trust_domain or first
    try:
        places = _places(folder, args.ids)
        if (folder / "ca.key").exists():
            ca = DevCa.load(folder, domain)
        else:
            ca = DevCa.make(domain)
            ca.save(folder)
            print(f"{folder / 'ca.crt'}  the CA of trust domain {domain}")
        for place, spiffe_id in places.items():
            ca.issue_files(place, spiffe_id, args.name or ["localhost", "127.0.0.1"], args.lifetime)
            print(f"{place}/  tls.crt, tls.key and ca.crt of {spiffe_id}")
    except OSError as error:
        print(f"l7proxy certs: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"l7proxy certs: {error}", file=sys.stderr)
        return 1
    return 0


def _places(folder: Path, ids: Sequence[str]) -> dict[Path, str]:
    """Returns the ID of each folder that is to be written; raises ValueError where one cannot be a workload's."""
    places: dict[Path, str] = {}
    for spiffe_id in ids:
        if not parse(spiffe_id).path:
            raise ValueError(f"{spiffe_id} names a trust domain, not a workload")
        place = folder / spiffe_id.rpartition("/")[2]
        if places.setdefault(place, spiffe_id) != spiffe_id:
            raise ValueError(f"{places[place]} and {spiffe_id} would both be written to {place}")
    return places


def _lifetime(text: str) -> datetime.timedelta:
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 30d, 12h or 5m")
    return datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})
