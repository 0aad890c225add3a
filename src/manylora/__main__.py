"""The entry point of `python -m manylora`, which is the command `manylora`."""

from manylora.cli import main

main()
