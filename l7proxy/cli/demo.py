"""`l7proxy demo`: two services, a sidecar beside each, and steady traffic from one to the other through both."""

import argparse
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from l7proxy.cli import demo_prometheus
from l7proxy.cli.demo_processes import ENDING, Children, ask, interrupt, wait
from l7proxy.cli.demo_services import Orders, Web, start
from l7proxy.identity.dev import DevCa

HELP = "run two small services with a sidecar beside each, and traffic between them"

NAMES = ("localhost", "127.0.0.1")

_WEB = """\
# The sidecar of `web`: its inbound side takes requests from outside, its outbound side those that `web` makes.
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {{name: web}}
spec:
  service: {{name: web, mesh: demo, labels: {{version: v1}}}}
  inbound: {{listen: "127.0.0.1:{inbound}", app: "http://127.0.0.1:{app}"}}
  outbound: {{listen: "127.0.0.1:{outbound}", policy: REGISTRY_ONLY}}
  admin: {{listen: "127.0.0.1:{admin}"}}
  metrics: {{listen: "127.0.0.1:{metrics}"}}
  accessLog: {{path: {folder}/web.log}}
---
# Where `orders` is: the inbound side of its sidecar.
apiVersion: l7proxy.io/v1
kind: Upstream
metadata: {{name: orders}}
spec:
  endpoints: ["127.0.0.1:{orders}"]
  tls:
    cert: ../certs/web/tls.crt
    key: ../certs/web/tls.key
    ca: ../certs/web/ca.crt
    identity: spiffe://demo/ns/demo/sa/orders
---
# What `web` asks of orders.demo goes there. `orders` fails now and then: a second attempt hides it.
apiVersion: l7proxy.io/v1
kind: Route
metadata: {{name: orders}}
spec:
  direction: outbound
  hosts: [orders.demo]
  upstream: orders
  policies:
    timeout: {{request: 2s, perTry: 500ms}}
    retry: {{attempts: 2, on: [connect-failure, reset, "503"]}}
"""

_ORDERS = """\
# The sidecar of `orders`. Callers must show a certificate of the demo's CA, or the handshake is refused.
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {{name: orders}}
spec:
  service: {{name: orders, mesh: demo, labels: {{version: v1}}}}
  inbound:
    listen: "127.0.0.1:{inbound}"
    app: "http://127.0.0.1:{app}"
    tls: {{mode: STRICT, cert: ../certs/orders/tls.crt, key: ../certs/orders/tls.key, ca: ../certs/orders/ca.crt}}
  admin: {{listen: "127.0.0.1:{admin}"}}
  metrics: {{listen: "127.0.0.1:{metrics}"}}
  accessLog: {{path: {folder}/orders.log}}
---
# `web` may read. Change `requests` to 5 and save: within a second, most of the traffic is answered 429.
apiVersion: l7proxy.io/v1
kind: Route
metadata: {{name: orders-read}}
spec:
  matches: [{{path: {{prefix: /v1/orders}}, methods: [GET]}}]
  upstream: app
  policies:
    authorization: {{allow: [{{identities: ["spiffe://demo/ns/demo/sa/web"]}}]}}
    rateLimit: {{requests: 500, per: 1s, by: identity}}
---
# `web` is not `ops`: what it asks here is denied by identity.
apiVersion: l7proxy.io/v1
kind: Route
metadata: {{name: orders-admin}}
spec:
  matches: [{{path: {{prefix: /v1/admin}}}}]
  upstream: app
  policies:
    authorization: {{allow: [{{identities: ["spiffe://demo/ns/demo/sa/ops"]}}]}}
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("--rate", type=float, default=20.0, metavar="N", help="requests per second (default 20)")


def run(args: argparse.Namespace) -> int:
    """Runs until Ctrl-C or SIGTERM; returns the exit status."""
    if args.rate <= 0:
        print("l7proxy demo: --rate must be more than nothing", file=sys.stderr)
        return 2
    for number in ENDING:
        signal.signal(number, interrupt)
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="l7proxy-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            return _demo(stack, folder, args.rate)
        except KeyboardInterrupt:
            # The end is bounded in time; another signal would only leave something running.
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            print("\nending the demo", flush=True)
            return 0


def _demo(stack: contextlib.ExitStack, folder: Path, rate: float) -> int:
    web_ports = ("web_in", "web_out", "web_admin", "web_metrics")
    names = (*web_ports, "orders_in", "orders_admin", "orders_metrics", "prometheus")
    port = dict(zip(names, _free_ports(len(names)), strict=True))
    web = start(Web(("127.0.0.1", port["web_out"])))
    orders = start(Orders())
    stack.callback(web.shutdown)
    stack.callback(orders.shutdown)
    texts = {
        "web": _WEB.format(
            inbound=port["web_in"],
            outbound=port["web_out"],
            app=web.port,
            admin=port["web_admin"],
            metrics=port["web_metrics"],
            orders=port["orders_in"],
            folder=folder,
        ),
        "orders": _ORDERS.format(
            inbound=port["orders_in"],
            app=orders.port,
            admin=port["orders_admin"],
            metrics=port["orders_metrics"],
            folder=folder,
        ),
    }
    ca = DevCa.make("demo")
    ca.save(folder / "certs")
    for name in ("web", "orders", "visitor"):
        ca.issue_files(folder / "certs" / name, f"spiffe://demo/ns/demo/sa/{name}", [*NAMES, f"{name}.demo"])
    children = Children()
    stack.callback(children.end)
    for name, text in texts.items():
        (folder / name).mkdir()
        (folder / name / "sidecar.yaml").write_text(text)
        children.spawn([sys.executable, "-m", "l7proxy", "run", "-c", str(folder / name)], folder / f"{name}.err")
    if not wait(lambda: all(ask(port[name], "/ready") == 200 for name in ("orders_admin", "web_admin"))):
        for name in texts:
            print(f"the sidecar of {name} says:\n{(folder / f'{name}.err').read_text()}", file=sys.stderr)
        return 1
    _say(folder, port)
    traffic = threading.Thread(target=_traffic, args=(port["web_in"], rate), daemon=True)
    traffic.start()
    demo_prometheus.start(
        children, folder / "prometheus", port["prometheus"], [port["web_metrics"], port["orders_metrics"]]
    )
    print(f"\nCtrl-C ends the demo and removes {folder}.", flush=True)
    while True:
        # Not signal.pause(): a signal that comes just before it would be waited for in vain.
        time.sleep(0.2)


def _say(folder: Path, port: dict[str, int]) -> None:
    orders = f"https://localhost:{port['orders_in']}/v1/orders"
    url = {name: f"http://127.0.0.1:{number}" for name, number in port.items()}
    print(
        f"""\
demo ready: {url["web_in"]}
demo metrics: {url["web_metrics"]}/metrics {url["orders_metrics"]}/metrics
demo admin: {url["web_admin"]} {url["orders_admin"]}

  you -> [sidecar of web] -> web -> [sidecar of web] == mTLS ==> [sidecar of orders] -> orders

What to try next:
  curl -i {url["web_in"]}/         a request through both sidecars
  curl -i {url["web_in"]}/admin    denied: web may read orders, and not administer them
  curl {url["web_admin"]}/routes   what the sidecar of web routes where
  tail -f {folder}/orders.log       the access log, one JSON object a line
  edit {folder}/orders/sidecar.yaml     a change is live within a second
  l7proxy check -c {folder}/orders      and this says what is wrong with it

Identity decides (one curl is allowed, one is denied, one is refused in the handshake):
  cd {folder}/certs
  curl -i --cacert ca.crt --cert web/tls.crt --key web/tls.key {orders}
  curl -i --cacert ca.crt --cert visitor/tls.crt --key visitor/tls.key {orders}
  curl -i --cacert ca.crt {orders}
""",
        flush=True,
    )


def _traffic(port: int, rate: float) -> None:
    """Asks `web` for orders, `rate` times a second, and for what it may not have now and then."""
    pause = 1.0 / rate
    due = time.monotonic()
    for number in itertools.count(1):
        ask(port, "/" if number % 25 else "/admin")
        due = max(due + pause, time.monotonic() - 1.0)
        time.sleep(max(due - time.monotonic(), 0.0))


def _free_ports(count: int) -> list[int]:
    """Returns ports that were free a moment ago, each another."""
    import socket

    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
