"""Workers that hang or die at the worst moment hold up nothing for long."""

import contextlib
import os
import signal
import time

from tests.conftest import StartServer, StartSidecar
from tests.lifecycle.test_workers import admin, pids, start
from tests.support.net import wait_for
from tests.support.sidecar import Document, Sidecar, route

BOUND = 30.0
"""Seconds for everything that waits for a worker that hangs."""


def answer(text: str) -> Document:
    return route("all", directResponse={"status": 200, "body": text})


def bodies(proxy: Sidecar) -> set[bytes]:
    return {proxy.get().body for _ in range(20)}


def settle(proxy: Sidecar, restarts: int, body: bytes) -> None:
    """Waits until so many workers were replaced, and all have the same configuration."""
    wait_for(lambda: proxy.metrics()("l7proxy_worker_restarts_total") == restarts, BOUND)
    wait_for(lambda: proxy.metrics()("l7proxy_workers") == 2, BOUND)
    wait_for(lambda: bodies(proxy) == {body}, BOUND)


def test_a_worker_that_hangs_is_replaced_and_a_change_waits_no_longer(sidecar: StartSidecar) -> None:
    proxy = start(sidecar, answer("one"))
    victim = pids(proxy)[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        proxy.configure(answer("two"))
        # Operators are answered meanwhile, and told that the process is not as it should be.
        began = time.monotonic()
        assert proxy.metrics()("l7proxy_workers") == 2
        assert admin(proxy, "/ready") == (503, "a worker does not answer\n")
        assert time.monotonic() - began < BOUND
        wait_for(lambda: victim not in pids(proxy), BOUND)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
    settle(proxy, 1, b"two")
    assert '"worker hangs"' in proxy.process.stderr
    proxy.reconfigure(answer("three"))
    assert bodies(proxy) == {b"three"}


def test_processes_that_were_all_stopped_go_on(sidecar: StartSidecar) -> None:
    proxy = start(sidecar, answer("one"))
    children = pids(proxy)
    for pid in (*children, proxy.process.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(13)
    # The parent first: it is to give them time.
    for pid in (proxy.process.pid, *children):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)
    wait_for(lambda: admin(proxy, "/ready")[0] == 200, BOUND)
    assert bodies(proxy) == {b"one"}
    assert pids(proxy) == children


def test_a_drain_does_not_wait_for_a_worker_that_hangs(sidecar: StartSidecar) -> None:
    proxy = start(sidecar, answer("one"))
    children = pids(proxy)
    os.kill(children[0], signal.SIGSTOP)
    try:
        proxy.process.kill(signal.SIGTERM)
        assert proxy.process.popen.wait(BOUND) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGCONT)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))


def test_workers_killed_in_the_middle_of_a_change_leave_nothing_behind(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = start(sidecar, answer("0"), app=serve().address)
    restarts = 0
    for number in range(1, 6):
        # Enough routes that the change takes a while; each time it is met at another moment.
        many = [route(f"r{n}", hosts=[f"h{number}-{n}"]) for n in range(400)]
        proxy.configure(answer(str(number)), *many)
        time.sleep(0.15 * number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids(proxy)[number % 2], signal.SIGKILL)
            restarts += 1
        settle(proxy, restarts, str(number).encode())
