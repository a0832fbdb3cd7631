"""The connectors that come with the gateway, one module each."""
