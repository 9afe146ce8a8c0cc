"""Every call into tercet is checked against its annotations, shapes included, while the tests run."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# By PEP 484 an int passes for a float: `margin=1` is no mistake.
install_import_hook("tercet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
