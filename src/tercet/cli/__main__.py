"""`python -m tercet.cli`: the console script by another way."""

from tercet.cli.app import main

main()
