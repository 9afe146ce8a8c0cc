#!/usr/bin/env python
"""Hard triplets of a collection of embeddings: the same command as `tercet mine`."""

from tercet.cli.app import run
from tercet.cli.mine import app

run(app)
