"""Dashboards for Grafana and rules for Prometheus as Python; `python -m grafana` writes the files beside it."""
