"""Every call into tercet is checked against its annotations, shapes included, while the tests run."""

import os
import re
import secrets
import sys

import jaxtyping
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A Ray that a test starts tells nobody of it, and lets nobody in without a token. Ray reads this on import.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# By PEP 484 an int passes for a float: `margin=1` is no mistake.
install_import_hook("tercet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No machine loses power in a test, and a thousand files that are forced to the disk take a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def tercet(monkeypatch, capfd):
    """Calls the console script; gives its exit code, standard output and standard error, as one line each."""
    from tercet.cli.app import main

    monkeypatch.setenv("COLUMNS", "200")
    # Typer asks for the annotation typer.Context and then hands over its parent class.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = (re.sub(r"[\s│╭╮╰╯─┌┐└┘├┤┬┴]+", " ", text) for text in capfd.readouterr())
        return ended.value.code or 0, out, err

    return call


@pytest.fixture(params=[0, 512], ids=["as a wide batch", "as a narrow batch"])
def width(request):
    """Small batches take the paths of wide ones too."""
    from tercet.pairwise.budget import override

    with override(class_order_rows=request.param, argmin_columns=request.param):
        yield
