"""`python -m tercet`: the same as the console script."""

from tercet.cli.app import main

if __name__ == "__main__":
    main()
