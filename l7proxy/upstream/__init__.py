"""Clusters, endpoints, balancing, pools and the connections to them, behind the httpx transport interface."""
