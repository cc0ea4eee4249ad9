"""The machine's own `diff`: calls that are meant for it are handed over, unchanged.

Standard library only, and little of it: every call of the classic tool passes through here first.
"""

import os
import sys
from collections.abc import Iterator, Sequence

COMMANDS = frozenset(
    "train eval evaluate compare predict submit export push import init check bench domains data doctor".split()
)
"""First words that are always ours, those of GROUPS only before a second word of theirs."""

GROUPS = {"data": frozenset({"inspect", "preview", "--help", "-h"})}
"""Commands of two words; `diff data other` compares a folder called data."""

PASSED_BY = "DIFFCLI_PASSED_BY"
"""Environment variable: executables already handed over to, so that no wrapper leads round in a circle."""

_SHORT = frozenset("aABbcCdDeEfFhHiIlLnNpPqrsStTuUvwWxXyZ0123456789")
_LONG = (
    "normal brief report-identical-files context unified ed forward-ed rcs side-by-side width left-column "
    "suppress-common-lines show-c-function show-function-line label expand-tabs initial-tab tabsize "
    "suppress-blank-empty paginate recursive no-dereference new-file unidirectional-new-file "
    "ignore-file-name-case no-ignore-file-name-case exclude exclude-from starting-file from-file to-file "
    "ignore-case ignore-tab-expansion ignore-trailing-space ignore-space-change ignore-all-space "
    "ignore-blank-lines ignore-matching-lines text binary strip-trailing-cr ifdef old-group-format "
    "new-group-format unchanged-group-format changed-group-format line-format old-line-format "
    "new-line-format unchanged-line-format minimal horizon-lines speed-large-files color palette algorithm "
    "no-follow-symbolic-links help version sdiff-merge-assist presume-output-tty"
).split()


def hand_over(arguments: Sequence[str]) -> None:
    """Replace this process by the classic tool if the call is meant for it; return if it is ours.

    Raises:
        SystemExit: the call is for the classic tool and it has run (Windows) or none is installed (127).
    """
    if not is_for_classic(arguments):
        return
    for path in classic_paths():
        _run(path, arguments)
    print(
        "diff: this call is for the classic diff, and no other diff is on PATH\n"
        "  -> install it (diffutils, or Git for Windows), or see `diff --help` for the commands of diffcli",
        file=sys.stderr,
    )
    raise SystemExit(127)


def is_for_classic(arguments: Sequence[str]) -> bool:
    """Whether a call looks like one of the classic tool's: its options, or paths, and no command of ours."""
    if not arguments or _names_command(arguments):
        return False
    if arguments[0] in ("--help", "-h", "--version") and (len(arguments) == 1 or arguments[1] in COMMANDS):
        return False
    first = arguments[0]
    if first.startswith("-") and first != "-":
        return _is_classic_option(first)
    if os.path.lexists(first) or first == "-":
        return len(arguments) > 1 or not first.endswith((".yaml", ".yml"))
    return not _is_typo(first) and _mentions_paths(arguments)


def _names_command(arguments: Sequence[str]) -> bool:
    first, *rest = arguments
    return first in COMMANDS and (first not in GROUPS or not rest or rest[0] in GROUPS[first])


def classic_paths() -> Iterator[str]:
    """Every other `diff` on PATH in its order: not this program under any of its names, not one tried before."""
    passed = _passed_by()
    names = ("diff.exe", "diff.cmd", "diff.bat") if os.name == "nt" else ("diff",)
    for folder in os.get_exec_path():
        for name in names:
            path = os.path.abspath(os.path.join(folder, name))
            if (
                os.path.isfile(path)
                and os.access(path, os.X_OK)
                and path not in passed
                and not _is_ours(path)
            ):
                yield path


def _is_classic_option(word: str) -> bool:
    """Whether GNU's or BSD's diff knows `word`: -u, -urN, -U3, --unified=3, or an abbreviation --unif."""
    if word == "--":
        return True
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        return any(known.startswith(name) for known in _LONG)
    return len(word) > 1 and word[0] == "-" and word[1] in _SHORT


def _is_typo(word: str) -> bool:
    """Whether `word` is a command of ours with a slip of the finger."""
    from difflib import get_close_matches

    return not _looks_like_path(word) and bool(get_close_matches(word, COMMANDS, n=1, cutoff=0.75))


def _looks_like_path(word: str) -> bool:
    return "." in word or "/" in word or os.sep in word


def _mentions_paths(arguments: Sequence[str]) -> bool:
    """Whether the call compares files, the first of which is missing: the classic tool reports that itself."""
    options = [word for word in arguments if word.startswith("-") and word != "-"]
    if not all(map(_is_classic_option, options)):
        return False
    words = [word for word in arguments if word not in options]
    exists = any(word == "-" or os.path.lexists(word) for word in words)
    return bool(options) or exists or (len(words) == 2 and any(map(_looks_like_path, words)))


def _is_ours(path: str) -> bool:
    """Whether an executable is a launcher of this program, of this installation or of any other.

    Launchers are small and name the module that they import: scripts in their text, Windows' launchers in the
    script appended to them.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
            if b"diffcli" in head:
                return True
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            return b"diffcli" in file.read()
    except OSError:
        return False


def _passed_by() -> list[str]:
    return [path for path in os.environ.get(PASSED_BY, "").split(os.pathsep) if path]


def _run(path: str, arguments: Sequence[str]) -> None:
    """Become the program at `path`; return only if it cannot be started."""
    os.environ[PASSED_BY] = os.pathsep.join([*_passed_by(), path])
    try:
        if os.name == "nt":
            import subprocess

            raise SystemExit(subprocess.run([path, *arguments], check=False).returncode)
        _restore_signals()
        os.execv(path, ["diff", *arguments])
    except OSError:
        return


def _restore_signals() -> None:
    """Python ignores SIGPIPE, and a new program would inherit that: `diff a b | head` must end quietly."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
