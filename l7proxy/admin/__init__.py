"""What operators, probes and Prometheus ask of a running sidecar."""
