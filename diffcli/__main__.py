"""Where `diff`, `diffcli` and `python -m diffcli` begin: the classic tool's calls leave before anything is loaded."""

import sys

from diffcli.cli.classic import hand_over


def main() -> None:
    """Run the classic diff or a command of ours; ends the process with its exit code."""
    hand_over(sys.argv[1:])
    from diffcli.runtime.signals import stop_at_once

    stop = stop_at_once()
    try:
        from diffcli.cli.main import main as run
    except BaseException:
        if stop.requested:
            sys.exit(128 + stop.number)
        raise
    run(stop)


if __name__ == "__main__":
    main()
