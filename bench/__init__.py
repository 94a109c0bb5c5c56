"""Side-by-side benchmarks: l7proxy, Envoy, nginx, HAProxy and the naive stack, in one run on one machine."""
