"""Certificate files: what `check`, `run` and `certs` make of good ones and bad ones."""

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.identity.contexts import Identity
from l7proxy.identity.material import BadMaterial, Material
from l7proxy.identity.report import certificates, check
from l7proxy.identity.sources import DevSource, Files
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import DAY, NOW, ORDERS, WEB, Authority, Pair, garbled, save
from tests.support.client import Client
from tests.support.sidecar import route, upstream


def l7proxy(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "l7proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def files(pair: Pair, ca: Authority) -> Files:
    return Files(str(pair.cert), str(pair.key), str(ca.file))


def test_good_files_have_no_problem(ca: Authority, web: Pair) -> None:
    assert check(files(web, ca)) == []


def test_each_problem_of_the_files_is_named(ca: Authority, tmp_path: Path) -> None:
    stranger, _ = Authority(tmp_path, "stranger").sign(WEB)
    certificate, key = ca.sign("https://demo/x", end=NOW - DAY / 2)
    pair = save(tmp_path, "bad", [certificate, stranger], key)
    messages = [problem.message for problem in check(files(pair, ca))]
    assert messages == [
        f"{WEB} did not sign https://demo/x, which stands before it",
        "the certificate's URI name is not a SPIFFE ID: 'https://demo/x' does not start with spiffe://",
        "certificate expired 12 h ago (https://demo/x)",
    ]


def test_a_leaf_among_the_authorities_is_named(ca: Authority, web: Pair) -> None:
    (problem,) = check(Files(str(web.cert), str(web.key), str(web.cert)))
    assert problem.message == f"{WEB} is not a CA certificate"


def test_a_certificate_for_the_other_end_is_named(ca: Authority) -> None:
    pair = ca.issue("client", WEB, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
    (problem,) = check(files(pair, ca))
    assert problem.message == f"{WEB} may not be used by a server (extended key usage)"
    assert check(files(pair, ca), server=False) == []


def test_a_chain_whose_leaf_is_not_first_is_named(ca: Authority, tmp_path: Path) -> None:
    pair = Authority(tmp_path, "between", ca).issue("deep", WEB)
    first, second = pair.cert.read_bytes().split(b"-----END CERTIFICATE-----\n")[:2]
    end = b"-----END CERTIFICATE-----\n"
    pair.cert.write_bytes(second + end + first + end)
    (problem,) = check(files(pair, ca))
    assert (problem.file, problem.message) == (str(pair.cert), "the leaf, whose key it is, must come first")


def test_revocation_lists_that_let_nobody_in_are_named(ca: Authority, web: Pair, tmp_path: Path) -> None:
    def found(crl: Path) -> list[str]:
        return [problem.message for problem in check(Files(str(web.cert), str(web.key), str(ca.file), str(crl)))]

    assert found(ca.revoke()) == []
    assert found(ca.revoke(next_update=NOW - DAY / 2)) == [
        "the revocation list of CN=ca expired 12 h ago, so that it lets nobody in"
    ]
    assert found(Authority(tmp_path, "other").revoke()) == [
        "no list in it is of an authority that is trusted, so that nobody is let in"
    ]
    (tmp_path / "false").mkdir()
    assert found(Authority(tmp_path / "false", "ca").revoke()) == [
        "the revocation list of CN=ca is signed by somebody else"
    ]


@given(
    st.sampled_from(["cert", "ca", "crl"]),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_in_the_files_is_taken_or_refused_with_a_sentence(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        authority = Authority(Path(name))
        pair = authority.issue("web", WEB)
        files = Files(str(pair.cert), str(pair.key), str(authority.file), str(authority.revoke()))
        path = Path(getattr(files, kind))
        first, *lines, last = path.read_text().splitlines()
        der = bytearray(base64.b64decode("".join(lines)))
        for at, value in changes:
            der[at % len(der)] = value
        path.write_text("\n".join([first, base64.encodebytes(der).decode().rstrip(), last, ""]))
        assert all(problem.message for problem in check(files))
        with contextlib.suppress(BadMaterial):
            certificates([Identity("web", files.read())])


def test_a_development_certificate_is_renewed_by_the_clock_on_the_wall(tmp_path: Path) -> None:
    now = time.time()

    async def follow() -> None:
        nonlocal now
        taken: asyncio.Queue[Material] = asyncio.Queue()
        source = DevSource(tmp_path / "ca", WEB, poll=0.001, clock=lambda: now)
        first = source.first()
        watching = asyncio.create_task(source.watch(taken.put_nowait, lambda error: None))
        await asyncio.sleep(0.05)
        assert taken.empty()
        # A night in which the machine sleeps, then a clock that is set back: peers would refuse the certificate.
        for step in (13 * 3600, -48 * 3600):
            now += step
            second = await asyncio.wait_for(taken.get(), 5)
            assert second.identity == WEB and second.chain != first.chain
            await asyncio.sleep(0.05)
            assert taken.empty()
        watching.cancel()

    asyncio.run(follow())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_holds_nobody_up(kind: str, ca: Authority, web: Pair, tmp_path: Path) -> None:
    cert = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(cert)
    (problem,) = check(Files(str(cert), str(web.key), str(ca.file)))
    assert problem.message == "cannot be read: not a regular file"


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        ("key", "is not the key of the certificate in"),
        ("nothing", "no certificate in it"),
        ("missing", "cannot be read: No such file or directory"),
        ("encrypted", "the key is encrypted"),
        ("garbled", "the certificate's key cannot be read"),
        ("small", "cannot be used: ee key too small"),
    ],
)
def test_check_and_run_name_the_line(
    breaks: str, sentence: str, ca: Authority, web: Pair, orders: Pair, tmp_path: Path
) -> None:
    cert, key = web.cert, web.key
    if breaks == "key":
        key = orders.key
    elif breaks == "nothing":
        cert.write_bytes(b"")
    elif breaks == "missing":
        cert.unlink()
    elif breaks == "garbled":
        cert.write_bytes(garbled(cert.read_bytes()))
    elif breaks == "small":
        options = [
            "-newkey",
            "rsa:1024",
            "-keyout",
            str(key),
            "-out",
            str(cert),
            "-addext",
            f"subjectAltName=URI:{WEB}",
        ]
        extensions = ["-addext", "basicConstraints=critical,CA:FALSE"]
        command = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=a", *options, *extensions]
        subprocess.run(command, check=True, capture_output=True)
    else:
        options = ["-in", str(web.key), "-out", str(tmp_path / "locked"), "-aes128", "-passout", "pass:x"]
        subprocess.run(["openssl", "pkey", *options], check=True, capture_output=True)
        key = tmp_path / "locked"
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec:\n  inbound:\n"
        "    listen: 127.0.0.1:0\n    app: http://127.0.0.1:1\n"
        f"    tls: {{cert: {cert}, key: {key}, ca: {ca.file}}}\n"
    )
    for verb in (["check"], ["run", "-c"]):
        ran = l7proxy(*verb, str(config))
        assert ran.returncode == 1
        assert f"{config}:8: " in ran.stderr
        assert sentence in ran.stderr
        assert "Traceback" not in ran.stderr


def test_strict_without_a_certificate_is_a_mistake(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\n"
        "spec:\n  inbound:\n    app: http://127.0.0.1:1\n    tls: {mode: STRICT}\n"
    )
    ran = l7proxy("check", str(config))
    assert (ran.returncode, ran.stderr) == (
        1,
        f"{config}:7: spec.inbound.tls: mode STRICT needs cert and key, or spiffe or dev\n",
    )


def test_certs_dev_makes_what_a_sidecar_takes(tmp_path: Path) -> None:
    out = tmp_path / "certs"
    ran = l7proxy("certs", "dev", "--out", str(out), WEB, ORDERS)
    assert ran.returncode == 0, ran.stderr
    authority = (out / "ca.crt").read_bytes()
    for name in ("web", "orders"):
        folder = out / name
        found = Files(str(folder / "tls.crt"), str(folder / "tls.key"), str(folder / "ca.crt"))
        assert check(found) == []
        assert found.read().identity == f"spiffe://demo/ns/shop/sa/{name}"
        assert (folder / "tls.key").stat().st_mode & 0o077 == 0
    # The CA that is there is used again.
    assert l7proxy("certs", "dev", "--out", str(out), WEB, "--lifetime", "5m").returncode == 0
    assert (out / "ca.crt").read_bytes() == authority


@pytest.mark.parametrize("wrong", ["demo/web", "spiffe://Demo/web", "spiffe://demo/../x"])
def test_certs_dev_refuses_what_is_no_spiffe_id(wrong: str, tmp_path: Path) -> None:
    ran = l7proxy("certs", "dev", "--out", str(tmp_path / "certs"), wrong)
    assert ran.returncode == 1
    assert ran.stderr.startswith("l7proxy certs: ")


def test_certs_dev_makes_nothing_that_no_peer_takes_or_that_is_overwritten_at_once(tmp_path: Path) -> None:
    out = tmp_path / "certs"
    other = WEB.replace("/shop/", "/tools/")
    for ids, why in (
        (["spiffe://demo"], "spiffe://demo names a trust domain, not a workload"),
        ([WEB, other], f"{WEB} and {other} would both be written to {out / 'web'}"),
    ):
        ran = l7proxy("certs", "dev", "--out", str(out), *ids)
        assert (ran.returncode, ran.stderr) == (1, f"l7proxy certs: {why}\n")
        assert not out.exists()
    ran = l7proxy("certs", "dev", "--out", "/proc/nowhere", WEB)
    assert (ran.returncode, ran.stderr) == (1, "l7proxy certs: /proc/nowhere: No such file or directory\n")


def test_two_sidecars_of_one_user_trust_each_other_without_a_file(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    home = {"XDG_STATE_HOME": str(tmp_path / "state")}
    service = {"namespace": "shop", "mesh": "demo"}
    tls = {"dev": "laptop"}
    allow = {"authorization": {"allow": [{"identities": ["spiffe://laptop/ns/shop/sa/web"]}]}}
    orders = sidecar(
        route("orders", policies=allow), app=serve().address, env=home, service={"name": "orders", **service},
        inbound={"tls": tls},
    )  # fmt: skip
    web = sidecar(
        upstream("orders", orders.inbound, tls={"dev": "laptop", "identity": "spiffe://laptop/ns/shop/sa/orders"}),
        route("to-orders", direction="outbound", hosts=["orders"], upstream="orders"),
        env=home, service={"name": "web", **service},
    )  # fmt: skip
    with Client(web.outbound) as client:
        assert client.get("/", "orders").status == 200
    assert (tmp_path / "state" / "l7proxy" / "laptop" / "ca.key").stat().st_mode & 0o077 == 0
