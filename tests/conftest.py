"""What all tests share: shapes checked at run time, hypothesis without deadlines."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports crosstill.functional: annotations there are then checked at every call.
install_import_hook("crosstill.functional", "shape_checks.checked")

# The first call of torch takes seconds, so a deadline would measure the machine.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("nightly", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
