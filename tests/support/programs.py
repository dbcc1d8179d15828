"""Programs that tests start and pip does not install."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """Where it is; skips the test where it is missing, and fails it where WALS_GPU_REQUIRE_PROGRAMS=1, as in CI."""
    found = shutil.which(name)
    if found is None:
        text = f"the program {name} is not installed"
        if os.environ.get("WALS_GPU_REQUIRE_PROGRAMS") == "1":
            pytest.fail(f"{text}, and WALS_GPU_REQUIRE_PROGRAMS=1 says that it must be", pytrace=False)
        pytest.skip(text)
    return found
