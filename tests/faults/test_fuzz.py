"""A few damaged files for every reader; the long form is ``bash scripts/faults.sh --fuzz``."""

import fuzz
import numpy as np
import pytest


@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_read_or_refused(reader, tmp_path):
    count = fuzz.fuzz_reader(reader, tmp_path / "fuzz", 25, seed=1)
    assert not count.problems and count.read + count.refused == 25


def test_crashes_and_other_errors_are_noticed(tmp_path):
    def read(path):
        content = path.read_bytes()
        if content == b"whole":
            return
        if content.startswith(b"w"):
            raise KeyError("no line about a file")
        fuzz.os._exit(9)

    reader = fuzz.Reader("broken", "a.txt", lambda path: path.write_bytes(b"whole"), read)
    count = fuzz.fuzz_reader(reader, tmp_path / "fuzz", 20, seed=0)
    assert len(count.problems) + count.read == 20 and count.refused == 0
    assert any("KeyError" in problem for problem in count.problems)
    assert any("the process ended with 9" in problem for problem in count.problems)


def test_damage_differs_from_case_to_case():
    damaged = {fuzz.damage(b"x,y\n1,2\n", np.random.default_rng([0, case])) for case in range(50)}
    assert len(damaged) > 40
