"""A cluster on this machine, for tests that play kubelet."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.kubelet import Pod
from tests.k8s.manifests import render

StartPod = Callable[..., Pod]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def start_pod(cluster: Cluster, tmp_path: Path) -> Iterator[StartPod]:
    """Starts the pod of a workload: `start_pod("overlays/native", "orders", images={...})`."""
    running: list[Pod] = []

    def start(name: str, workload: str, **options: Any) -> Pod:
        pod = Pod(cluster, tmp_path / f"pod{len(running)}", render(name), workload, **options)
        running.append(pod)
        pod.start()
        return pod

    yield start
    for pod in running:
        pod.close()
