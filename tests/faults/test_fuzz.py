"""Damaged files for every reader, few of them; the long form is ``bash scripts/faults.sh --fuzz``."""

import os

import fuzz
import pytest

CASES = int(os.environ.get("GST_CASES", 25))


@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_read_or_refused(reader, tmp_path):
    assert set(fuzz.fuzz_reader(reader, tmp_path / "fuzz", CASES, seed=1)) <= {"read", "refused"}


def test_crashes_and_other_errors_are_noticed(tmp_path):
    def read(path):
        content = path.read_bytes()
        if content == b"whole":
            return
        if content.startswith(b"w"):
            raise KeyError("no line about a file")
        fuzz.os._exit(9)

    reader = fuzz.Reader("broken", "a.txt", lambda path: path.write_bytes(b"whole"), read)
    lines = fuzz.fuzz_reader(reader, tmp_path / "fuzz", 20, seed=0)
    assert len(set(lines)) > 2 and len(lines) == 20 and "refused" not in lines
    assert any("KeyError" in line for line in lines) and any("the process ended with 9" in line for line in lines)
