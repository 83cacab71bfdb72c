"""One server and one set of stages for all tests here."""

import harness
import pytest


@pytest.fixture(scope="session")
def server():
    with harness.Server() as running:
        yield running


@pytest.fixture(scope="session")
def stages(server, tmp_path_factory):
    return harness.make_stages(server, tmp_path_factory.mktemp("faults") / "inputs", images=4, epochs=2)
