"""Listening sockets and the protocols spoken on them."""
