"""Real brokers for tests: each module starts one kind, as `tests.services` does with databases."""
