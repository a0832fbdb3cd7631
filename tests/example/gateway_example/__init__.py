"""Handlers that leave a trace in a ledger, well-behaved ones and abusive ones."""
