"""The reader of MATLAB 5 files against SciPy's, and on damaged bytes."""

import io
import struct

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from raw_data import image_info

from datasets.raw.annotations import read_sh, read_ucf
from datasets.raw.mat_file import read_mat

NUMBERS = arrays.arrays(
    st.sampled_from([np.dtype(kind) for kind in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4")]),
    arrays.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5),
    elements={"allow_nan": False},
)


def saved(compressed=False, **contents):
    stream = io.BytesIO()
    scipy.io.savemat(stream, contents, do_compression=compressed, oned_as="column")
    return stream.getvalue()


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.booleans(), st.text("abcdefghijklmnop", min_size=1, max_size=31))
def test_numbers_are_those_of_scipy(tmp_path_factory, values, compressed, name):
    path = tmp_path_factory.getbasetemp() / "numbers.mat"
    path.write_bytes(saved(compressed, other="text", **{name: values}) if name != "other" else saved(other=values))
    expected = scipy.io.loadmat(path)[name]
    found = read_mat(path)[name]
    assert found.dtype == np.float64 and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_nested_values_are_those_of_scipy(tmp_path, compressed):
    points = np.random.default_rng(0).uniform(0, 900, (40, 2))
    (tmp_path / "a.mat").write_bytes(saved(compressed, image_info=image_info(points), note="x", flag=True))
    expected = scipy.io.loadmat(tmp_path / "a.mat")["image_info"][0, 0][0, 0][0]
    np.testing.assert_array_equal(read_sh(tmp_path / "a.mat"), expected)
    np.testing.assert_array_equal(expected, points)
    assert read_mat(tmp_path / "a.mat")["image_info"][0][0]["number"].tolist() == [[40.0]]


def test_whole_numbers_stored_small_are_an_array_of_doubles(tmp_path):
    """MATLAB itself stores [3 4] as bytes in the class double; SciPy's writer does not."""
    body = struct.pack("<IIII", 6, 8, 6, 0) + struct.pack("<IIii", 5, 8, 1, 2) + struct.pack("<HH4s", 1, 2, b"ab\0\0")
    body += struct.pack("<HH4s", 2, 2, b"\x03\xc8\0\0")
    (tmp_path / "a.mat").write_bytes(saved(x=1.0)[:128] + struct.pack("<II", 14, len(body)) + body)
    assert (
        read_mat(tmp_path / "a.mat")["ab"].tolist() == scipy.io.loadmat(tmp_path / "a.mat")["ab"].tolist() == [[3, 200]]
    )


WHOLE = {
    "ucf": (read_ucf, saved(annPoints=np.arange(12.0).reshape(6, 2))),
    "ucf, compressed": (read_ucf, saved(True, annPoints=np.arange(12.0).reshape(6, 2))),
    "sh": (read_sh, saved(image_info=image_info(np.arange(8.0).reshape(4, 2)))),
}


def damaged(whole):
    """Every part of the file, and the file with every word as one of several codes."""
    yield from (whole[:length] for length in range(len(whole)))
    for position in range(128, min(len(whole), 460), 4):
        for word in (0, 15, 16, 255, 65536 * 4 + 99, 0x7FFFFFFF, 0xFFFFFFFF):
            yield whole[:position] + struct.pack("<I", word) + whole[position + 4 :]


@pytest.mark.parametrize("read, whole", WHOLE.values(), ids=WHOLE)
def test_every_word_may_be_wrong(tmp_path, read, whole):
    """Type codes out of range, as in byte 192 of the first file, end ``scipy.io.loadmat`` with a segmentation fault."""
    path, refused = tmp_path / "a.mat", 0
    for contents in damaged(whole):
        path.write_bytes(contents)
        try:
            assert read(path).shape[1] == 2
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) + 60
