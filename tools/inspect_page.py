#!/usr/bin/env python
"""A page of a collection of embeddings: the same command as `tercet inspect`."""

from tercet.cli.app import run
from tercet.cli.inspect import app

run(app)
