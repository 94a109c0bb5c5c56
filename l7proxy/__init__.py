"""l7proxy: an HTTP-aware L7 sidecar for microservices."""

__version__ = "0.1.0"
