#!/usr/bin/env python
"""Triplets of images from class folders: the same command as `tercet make-triplets`."""

from tercet.cli.app import run
from tercet.cli.make_triplets import app

run(app)
