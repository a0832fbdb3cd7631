"""HTTP as the gateway serves and calls it: hardened once, for the admin listener and for the HTTP connector."""
