"""`python -m manylora` is the command `manylora`."""

from manylora.cli import main

main()
