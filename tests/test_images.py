"""Reading image files of all kinds, and of none; parts of JPEGs are the pixels of the whole image, whatever is asked for."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from utils.images import Pieces, load_image, open_image, save_jpeg

TREES = Path(__file__).resolve().parents[1] / "examples" / "trees"
assert_same = np.testing.assert_array_equal


def written(image, form="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def test_a_jpeg_appears_whole_or_not_at_all(tmp_path):
    save_jpeg(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.jpg", 75)
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(OSError, match=r"a.jpg: cannot write"):
        save_jpeg(np.zeros((70_000, 8, 3), np.uint8), tmp_path / "a.jpg", 75)
    assert (tmp_path / "a.jpg").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def noise(height, width, seed=0):
    """Noise in blocks of 5 pixels, so that color changes everywhere and does so smoothly."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def jpeg(tmp_path):
    save_jpeg(noise(150, 400), tmp_path / "a.jpg", 90)
    return tmp_path / "a.jpg"


@pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (17, 129), (130, 61 * 16 + 3), (97, 15 * 16)])
def test_every_part_equals_that_of_the_whole_image(tmp_path, height, width):
    """And the whole image is that without the markers, in a file hardly larger."""
    path, random = tmp_path / "a.jpg", np.random.default_rng(height)
    save_jpeg(noise(height, width), path, 75)
    plain = written(noise(height, width), quality=75)
    assert_same(load_image(path), np.array(Image.open(io.BytesIO(plain))))
    assert path.stat().st_size < 1.02 * len(plain) + 10
    whole, pieces = load_image(path), open_image(path)
    assert isinstance(pieces, Pieces) and pieces.shape == whole.shape
    assert_same(pieces[:, :], whole)
    for _ in range(60):
        top, left = random.integers(0, (height, width))
        bottom, right = random.integers((top, left), (height, width)) + 1
        assert_same(pieces[top:bottom, left:right], whole[top:bottom, left:right])


def test_only_what_is_asked_for_is_decoded(tmp_path, monkeypatch):
    save_jpeg(noise(640, 1024), tmp_path / "a.jpg", 90)
    given, decode = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, *a, **k: given.append(data) or decode(data, *a, **k))
    assert open_image(tmp_path / "a.jpg")[320:352, 512:640].shape == (32, 128, 3)
    assert Image.open(io.BytesIO(given[0])).size == (3 * 128, 4 * 16)  # pixels next to it: color crosses borders
    assert len(given[0]) < (tmp_path / "a.jpg").stat().st_size / 15


def test_a_piece_that_cannot_be_decoded_is_left_to_who_decodes_it_all(jpeg):
    data = bytearray(jpeg.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    jpeg.write_bytes(data)
    assert isinstance(open_image(jpeg), Pieces)
    assert_same(open_image(jpeg)[:, :], load_image(jpeg))
    for part in (np.s_[:1000, 390:500], np.s_[-30:, -50:-10]):  # also beyond the border, and counted from there
        assert open_image(jpeg)[part].shape == load_image(jpeg)[part].shape


@pytest.mark.parametrize(
    "mode, form, options",
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"restart_marker_blocks": 8, "subsampling": "4:4:4"}),
        ("RGB", "JPEG", {"progressive": True, "restart_marker_blocks": 8}),
        ("RGB", "JPEG", {"restart_marker_blocks": 3}),  # which does not divide the 16 blocks of a row
        ("RGB", "JPEG", {"restart_marker_rows": 2}),
        ("L", "JPEG", {"restart_marker_blocks": 8}),
        ("CMYK", "JPEG", {"restart_marker_blocks": 8}),
        ("RGB", "PNG", {}),
    ],
    ids=str,
)
def test_other_images_are_read_whole(tmp_path, mode, form, options):
    Image.fromarray(noise(100, 256)).convert(mode).save(tmp_path / "a.jpg", form, **options)
    image = open_image(tmp_path / "a.jpg")
    assert isinstance(image, np.ndarray)
    assert_same(image, load_image(tmp_path / "a.jpg"))


def test_damaged_files_are_refused_in_the_words_of_whole_ones(jpeg):
    data, raised, random = jpeg.read_bytes(), 0, np.random.default_rng(5)
    for _ in range(300):
        damaged = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        jpeg.write_bytes(damaged[: random.integers(1, len(data))] if random.random() < 0.3 else damaged)
        try:
            assert open_image(jpeg)[20:90, 100:350].shape[2] == 3
        except (ValueError, OSError) as error:
            raised += 1
            assert str(error).startswith(f"{jpeg}: cannot read this image") and "\n" not in str(error)
    assert raised > 50


def test_no_memory_for_pieces_is_said_as_of_whole_images(jpeg, monkeypatch):
    def none_left(*_, **__):
        raise MemoryError

    image = open_image(jpeg)
    monkeypatch.setattr("simplejpeg.decode_jpeg", none_left)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot read this image \(not enough memory"):
        image[0:20, 0:20]
