"""For users' tests: run a handler, and the suites that every connector and every database must pass."""
