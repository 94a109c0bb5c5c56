"""SPIFFE identities, where certificates come from, and the TLS contexts made of them."""
