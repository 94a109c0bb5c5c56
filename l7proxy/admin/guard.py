"""What keeps web pages away from the admin API: they reach loopback through the browser of whoever looks at them."""

import ipaddress
import socket

from l7proxy.admin.declare import App, Receive, Scope, Send, as_json


def guarded(app: App, everywhere: bool) -> App:
    """Refuses what a web page in some browser could make it send.

    A name that was pointed at this address after its page was loaded (DNS rebinding) shows in Host: only addresses,
    `localhost` and this machine's own name pass. `everywhere` checks that on every interface, else on loopback only, as
    what listens elsewhere can be reached by others anyway and goes by names that we do not know. A form or script of
    another page shows in Origin.
    """
    names = {"localhost", socket.gethostname().lower()}

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(reversed(scope["headers"]))
            host = headers.get(b"host", b"").decode("latin-1").lower()
            local = is_local(scope)
            refusal = None
            if local is not None and (everywhere or local) and not _known(host, names):
                refusal = as_json({"error": f"this is not {host!r}"}, 421)
            elif scope["method"] not in ("GET", "HEAD") and b"origin" in headers:
                refusal = as_json({"error": "not from a web page"}, 403)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await app(scope, receive, send)

    return check


def is_local(scope: Scope) -> bool | None:
    """Says whether the connection came over loopback; None for a Unix socket, which no browser reaches."""
    server = scope.get("server")
    if not server or server[1] is None:
        return None
    try:
        return ipaddress.ip_address(server[0]).is_loopback
    except ValueError:
        return bool(server[0] == "localhost")


def _known(host: str, names: set[str]) -> bool:
    name, colon, port = host.rpartition(":")
    if not (colon and port.isdigit()):
        name = host
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
