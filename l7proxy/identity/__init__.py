"""Who is at each end of a connection: SPIFFE IDs, certificates and their rotation, TLS. Imports core alone."""
