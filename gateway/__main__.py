"""`gateway` and `python -m gateway`: signals first, everything else after."""

import sys

from gateway.stop import StopSignal


def main() -> None:
    """Run the command line, and exit with its code."""
    stop = StopSignal()
    stop.install()
    from gateway.cli import main as run

    sys.exit(run(stop))


if __name__ == "__main__":
    main()
