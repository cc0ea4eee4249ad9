"""`python -m diffcli` is the same as `diff` and `diffcli`."""

from diffcli.cli import main

if __name__ == "__main__":
    main()
