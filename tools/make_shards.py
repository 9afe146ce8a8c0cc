#!/usr/bin/env python
"""Tar shards from class folders or a table: the same command as `tercet make-shards`."""

from tercet.cli.make_shards import app
from tercet.cli.run import run

run(app)
