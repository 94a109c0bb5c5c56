"""Real parts for tests: processes, sockets that speak byte by byte, and what reads their output."""
