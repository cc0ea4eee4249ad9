"""Where `diff`, `diffcli` and `python -m diffcli` begin: the classic tool's calls leave before anything is loaded."""

import os
import sys

from diffcli.cli.classic import hand_over


def main() -> None:
    """Run the classic diff or a command of ours; ends the process with its exit code."""
    hand_over(sys.argv[1:])
    _open_closed_streams()
    from diffcli.runtime.signals import stop_at_once

    stop = stop_at_once()
    try:
        from diffcli.cli.main import main as run
    except BaseException:
        if stop.requested:
            sys.exit(128 + stop.number)
        raise
    run(stop)


def _open_closed_streams() -> None:
    """A stream that the caller closed (`>&-`) becomes the null device, so that no file takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


if __name__ == "__main__":
    main()
