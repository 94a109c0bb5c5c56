"""A network of pods on this machine: each has a network namespace of its own, and a bridge in the node's joins them."""

import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace, its own hostname, and threads that are in it: what they open is opened there."""

    def __init__(self, hostname: str) -> None:
        script = f"hostname {hostname} && ip link set lo up && echo && exec sleep 3600"
        command = ["unshare", "--net", "--uts", "--ipc", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n"
        self._threads = ThreadPoolExecutor(8, initializer=self._enter)

    @property
    def pid(self) -> int:
        return self._holder.pid

    def ip(self, *arguments: str) -> None:
        """Runs `ip` inside."""
        subprocess.run(["nsenter", "--target", str(self.pid), "--net", "ip", *arguments], check=True)

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Does work inside, on another thread."""
        return self._threads.submit(work)

    def do(self, work: Callable[[], T]) -> T:
        """Does work inside, and returns what it returns."""
        return self.start(work).result(120)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._holder.kill()
        self._holder.wait()

    def _enter(self) -> None:
        descriptor = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)


class Cluster:
    """One node. `names` are what a cluster's DNS would answer: hosts and the addresses of their pods."""

    def __init__(self) -> None:
        self.node = Namespace("node")
        self.names: dict[str, list[str]] = {}
        self._numbers = itertools.count(2)
        self.node.ip("link", "add", "br0", "type", "bridge")
        self.node.ip("addr", "add", "10.244.0.1/24", "dev", "br0")
        self.node.ip("link", "set", "br0", "up")

    def join(self, hostname: str) -> tuple[Namespace, str]:
        """Returns a new namespace on the network, and its address."""
        pod, number = Namespace(hostname), next(self._numbers)
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(pod.pid)]
        self.node.ip("link", "add", f"veth{number}", *peer)
        self.node.ip("link", "set", f"veth{number}", "master", "br0", "up")
        address = f"10.244.0.{number}"
        pod.ip("addr", "add", f"{address}/24", "dev", "eth0")
        pod.ip("link", "set", "eth0", "up")
        return pod, address

    def close(self) -> None:
        self.node.close()
