"""The expressions that dashboards and rules share; docs/dashboards.md says how they select a service."""

REQUESTS = "http_server_request_duration_seconds_count"
DURATIONS = "http_server_request_duration_seconds_bucket"
ATTEMPTS = "http_client_request_duration_seconds_count"
ATTEMPT_DURATIONS = "http_client_request_duration_seconds_bucket"

INSTANCE = 'instance=~"$instance"'
INBOUND = 'l7proxy_direction="inbound"'
ROUTE = 'l7proxy_route=~"$route"'
FLEET = f'l7proxy_mesh=~"$mesh", {INBOUND}'

# A tunnel lasts as long as its two ends like: that says nothing of the service's speed.
NO_TUNNELS = 'http_request_method!="CONNECT", http_response_status_code!="101"'

FAILED = 'http_response_status_code=~"5.."'
# UNIMPLEMENTED is left out as 404 is: whoever calls what there is not would spend the service's error budget.
GRPC_FAILED = 'rpc_response_status_code=~"UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|DATA_LOSS"'

NAMED = "* on (job, instance) group_left (l7proxy_mesh, service_name) target_info"
"""Adds the names of mesh and service to series that know only the sidecar they come from."""


def rate(metric: str, *matchers: str, window: str = "$__rate_interval") -> str:
    """Returns the growth per second of a counter."""
    return f"rate({metric}{_selector(matchers)}[{window}])"


def increase(metric: str, *matchers: str, window: str = "$__rate_interval") -> str:
    """Returns the growth of a counter within the window."""
    return f"increase({metric}{_selector(matchers)}[{window}])"


def failures(*matchers: str, window: str = "$__rate_interval") -> str:
    """Returns the rates of the requests that the service or its proxy failed, over HTTP and gRPC."""
    http = rate(REQUESTS, *matchers, FAILED, window=window)
    return f"({http} or {rate(REQUESTS, *matchers, GRPC_FAILED, window=window)})"


def total(expression: str, *labels: str) -> str:
    """Returns the sum over every label but `labels`."""
    return f"sum by ({', '.join(labels)}) ({expression})" if labels else f"sum({expression})"


def ratio(part: str, whole: str) -> str:
    """Returns part / whole of series with the same labels: 0 where a part is missing, nothing where the whole is 0."""
    return f"(({part}) or 0 * ({whole})) / (({whole}) > 0)"


def quantile(share: float, buckets: str, *labels: str) -> str:
    """Returns a quantile of a histogram's rates, apart by `labels`."""
    return f"histogram_quantile({share}, {total(buckets, 'le', *labels)})"


def by_service(expression: str, *labels: str) -> str:
    """Returns the sum by mesh, service and `labels`; sums for each sidecar first, so that the join stays small."""
    extra = "".join(f", {label}" for label in labels)
    return f"sum by (l7proxy_mesh, service_name{extra}) (sum by (job, instance{extra}) ({expression}) {NAMED})"


def _selector(matchers: tuple[str, ...]) -> str:
    return f"{{{', '.join(matchers)}}}" if matchers else ""
