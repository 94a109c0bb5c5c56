"""Which series a request moves, and that no client can make more of them than there is room for."""

import pytest

from l7proxy.core.handler import Keep
from l7proxy.core.slices import finish
from l7proxy.core.stats import Histogram, Stats
from l7proxy.telemetry.metrics import CLIENT, IDLE, SERVER, Metrics, RouteMetrics
from tests.telemetry.requests import finished

Series = dict[str, str]


def series(stats: Stats, name: str = SERVER, **labels: str) -> list[tuple[Series, Histogram]]:
    found = []
    for key, metric in stats.families[name].children.items():
        have = dict(key)
        if labels.items() <= have.items():
            assert isinstance(metric, Histogram)
            found.append((have, metric))
    return found


def count(stats: Stats, name: str = SERVER, **labels: str) -> int:
    return sum(metric.count for _, metric in series(stats, name, **labels))


def route(stats: Stats) -> tuple[Metrics, RouteMetrics]:
    metrics = Metrics(stats)
    return metrics, metrics.route(Keep(), "orders-read", True, [("/v1/orders", b"GET")])


def expire(metrics: Metrics, now: float) -> None:
    for _ in metrics.expire(now):
        pass


def test_a_request_moves_the_series_of_the_contract() -> None:
    stats = Stats()
    _, orders = route(stats)
    orders.finish(
        finished("spiffe://demo/ns/shop/sa/web", scheme=b"https", flags="UF", code="upstream_connect"), 503, 0.3
    )
    [(labels, metric)] = series(stats, l7proxy_peer="spiffe://demo/ns/shop/sa/web")
    assert labels == {
        "error_type": "upstream_connect",
        "http_request_method": "GET",
        "http_response_status_code": "503",
        "http_route": "/v1/orders",
        "l7proxy_direction": "inbound",
        "l7proxy_flags": "UF",
        "l7proxy_peer": "spiffe://demo/ns/shop/sa/web",
        "l7proxy_route": "orders-read",
        "network_protocol_version": "1.1",
        "rpc_response_status_code": "",
        "url_scheme": "https",
    }
    assert (metric.count, metric.sum) == (1, 0.3)
    assert metric.buckets[metric.bounds.index(0.5)] == 1


@pytest.mark.parametrize(("status", "error"), [(200, ""), (404, ""), (500, "500"), (503, "503")])
def test_error_type_is_the_status_of_a_5xx_that_the_upstream_answered(status: int, error: str) -> None:
    stats = Stats()
    _, orders = route(stats)
    orders.finish(finished("someone"), status, 0.1)
    assert [labels["error_type"] for labels, _ in series(stats, l7proxy_peer="someone")] == [error]


def test_a_value_on_a_bound_belongs_to_the_bucket_below() -> None:
    stats = Stats()
    _, orders = route(stats)
    orders.finish(finished(), 200, 0.25)
    [(_, metric)] = series(stats)
    assert metric.buckets[metric.bounds.index(0.25)] == 1


def test_configured_series_are_there_before_the_first_request() -> None:
    stats = Stats()
    Metrics(stats).route(Keep(), "r", False, [("/a", b"GET"), ("/b", b"POST"), ("/a", b"GET")])
    found = {(labels["http_route"], labels["http_request_method"], metric.count) for labels, metric in series(stats)}
    assert found == {("/a", "GET", 0), ("/b", "POST", 0)}
    assert {labels["l7proxy_direction"] for labels, _ in series(stats)} == {"outbound"}


def test_what_a_client_invents_makes_no_new_series() -> None:
    stats = Stats()
    _, orders = route(stats)
    for number in range(1000):
        invented = finished(method=b"M%d" % number, scheme=b"s%d" % number, grpc_status=17 + number)
        orders.finish(invented, 200, 0.1)
    assert len(series(stats)) == 2
    assert count(stats, http_request_method="_OTHER", url_scheme="_OTHER", rpc_response_status_code="UNKNOWN") == 1000


def test_the_grpc_status_is_named() -> None:
    stats = Stats()
    _, orders = route(stats)
    orders.finish(finished(grpc_status=14), 200, 0.1)
    orders.finish(finished(grpc_status=0), 200, 0.1)
    assert count(stats, rpc_response_status_code="UNAVAILABLE") == 1
    assert count(stats, rpc_response_status_code="OK") == 1


def test_beyond_the_limit_peers_are_counted_as_other() -> None:
    stats = Stats()
    metrics = Metrics(stats, max_peers=3)
    first = metrics.route(Keep(), "first", True)
    second = metrics.route(Keep(), "second", True)
    for number in range(10):
        first.finish(finished(f"peer-{number}"), 200, 0.1)
    for number in range(10):
        second.finish(finished(f"peer-{9 - number}"), 200, 0.1)
    peers = {labels["l7proxy_peer"] for labels, _ in series(stats)}
    assert peers == {"", "peer-0", "peer-1", "peer-2", "other"}
    assert count(stats, l7proxy_peer="other") == 14
    assert count(stats) == 20


def test_the_place_of_an_idle_peer_is_given_to_another() -> None:
    stats = Stats()
    metrics = Metrics(stats, max_peers=1)
    orders = metrics.route(Keep(), "r", True)
    orders.finish(finished("old"), 200, 0.1)
    orders.finish(finished("old"), 404, 0.1)
    expire(metrics, 1e9)
    expire(metrics, 1e9 + IDLE)
    orders.finish(finished("new"), 200, 0.1)
    assert {labels["l7proxy_peer"] for labels, _ in series(stats)} == {"", "new"}


def test_idle_series_of_traffic_expire_and_configured_ones_stay() -> None:
    stats = Stats()
    metrics, orders = route(stats)
    orders.finish(finished("busy"), 200, 0.1)
    orders.finish(finished("idle"), 200, 0.1)
    expire(metrics, 1e9)
    orders.finish(finished("busy"), 200, 0.1)
    expire(metrics, 1e9 + IDLE)
    assert {labels["l7proxy_peer"] for labels, _ in series(stats)} == {"", "busy"}
    assert count(stats, l7proxy_peer="busy") == 2
    orders.finish(finished("idle"), 200, 0.1)
    assert count(stats, l7proxy_peer="idle") == 1


def test_a_new_configuration_of_a_route_goes_on_counting_where_the_old_one_was() -> None:
    stats, keep = Stats(), Keep()
    metrics = Metrics(stats)
    old = metrics.route(keep, "r", True, [("/a", b"GET"), ("/v1/orders", b"GET")])
    keep.commit()
    old.finish(finished(), 200, 0.1)
    new = metrics.route(keep, "r", True, [("/b", b"GET"), ("/v1/orders", b"GET")])
    for dropped in keep.commit():
        dropped.close()
    new.finish(finished(), 200, 0.1)
    old.finish(finished(), 200, 0.1)
    assert count(stats, http_route="/v1/orders") == 3
    expire(metrics, 1e9)
    expire(metrics, 1e9 + IDLE)
    assert {labels["http_route"] for labels, _ in series(stats)} == {"/b", "/v1/orders"}


def test_a_removed_route_is_forgotten_once_it_is_idle() -> None:
    stats, keep = Stats(), Keep()
    metrics = Metrics(stats)
    metrics.route(keep, "r", True).finish(finished(), 200, 0.1)
    keep.commit()
    for dropped in keep.commit():
        dropped.close()
    expire(metrics, 1e9)
    assert count(stats) == 1
    expire(metrics, 1e9 + IDLE)
    assert series(stats) == []


def test_attempts_are_counted_by_upstream() -> None:
    stats = Stats()
    payments = Metrics(stats).upstream("payments")
    assert count(stats, CLIENT, l7proxy_upstream="payments") == 0
    payments.observe(b"GET", 200, "", 0.1)
    payments.observe(b"BREW", 503, "", 0.1)
    payments.observe(b"GET", 0, "upstream_connect", 0.1)
    assert count(stats, CLIENT, http_response_status_code="200", error_type="") == 1
    assert count(stats, CLIENT, http_request_method="_OTHER", error_type="503") == 1
    assert count(stats, CLIENT, http_response_status_code="", error_type="upstream_connect") == 1


def test_what_is_labelled_with_a_removed_upstream_or_route_goes_after_a_while() -> None:
    stats = Stats()
    metrics = Metrics(stats)
    finish(metrics.settle(["a", "b"], ["x", "y"], 0.0))
    for upstream in ("x", "y"):
        metrics.upstream(upstream).observe(b"GET", 200, "", 0.1)
    for name in ("a", "b"):
        stats.counter("l7proxy_retries_total", "Retries", l7proxy_route=name).value += 1
    finish(metrics.settle(["a"], ["x"], 100.0))
    expire(metrics, 100.0 + IDLE - 1)
    assert count(stats, CLIENT, l7proxy_upstream="y") == 1
    expire(metrics, 100.0 + IDLE)
    named = {value for family in stats for labels in family.children for _, value in labels}
    assert {"a", "x"} <= named
    assert named.isdisjoint({"b", "y"})
    metrics.upstream("y").observe(b"GET", 200, "", 0.1)
    assert count(stats, CLIENT, l7proxy_upstream="y") == 1


def test_a_name_that_comes_back_in_time_keeps_its_counts() -> None:
    stats = Stats()
    metrics = Metrics(stats)
    finish(metrics.settle([], ["x"], 0.0))
    metrics.upstream("x").observe(b"GET", 200, "", 0.1)
    finish(metrics.settle([], [], 10.0))
    finish(metrics.settle([], ["x"], 20.0))
    expire(metrics, 1e9)
    assert count(stats, CLIENT, l7proxy_upstream="x") == 1
