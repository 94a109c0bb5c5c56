"""All scenarios, in the order in which they run."""

from bench.compare import Scenario
from bench.scenarios import cost, hostile, http1, http2, idle, operation, routes, rules, tls, websocket, why, workers

ALL: tuple[Scenario, ...] = (
    *http1.SCENARIOS,
    *cost.SCENARIOS,
    *tls.SCENARIOS,
    *http2.SCENARIOS,
    *websocket.SCENARIOS,
    *idle.SCENARIOS,
    *routes.SCENARIOS,
    *rules.SCENARIOS,
    *operation.SCENARIOS,
    *workers.SCENARIOS,
    *why.SCENARIOS,
    *hostile.SCENARIOS,
)
