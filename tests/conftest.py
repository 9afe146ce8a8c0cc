"""Every call into tercet is checked against its annotations, shapes included, while the tests run."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
install_import_hook("tercet", "beartype.beartype")
