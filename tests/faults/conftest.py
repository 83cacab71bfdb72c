"""One set of stages for all tests here."""

import harness
import pytest


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    return harness.make_stages(tmp_path_factory.mktemp("faults") / "inputs", images=4, epochs=2)
