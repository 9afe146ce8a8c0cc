#!/usr/bin/env python
"""Triplets of images from class folders: the same command as `tercet make-triplets`."""

from tercet.cli.make_triplets import app
from tercet.cli.run import run

run(app)
