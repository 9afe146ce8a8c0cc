#!/usr/bin/env python
"""Embeddings of a collection of images: the same command as `tercet embed`."""

from tercet.cli.app import run
from tercet.cli.embed import app

run(app)
