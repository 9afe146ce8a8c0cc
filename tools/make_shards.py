#!/usr/bin/env python
"""Tar shards from class folders or a table: the same command as `tercet make-shards`."""

from tercet.cli.app import run
from tercet.cli.shards import app

run(app)
