"""Parts of JPEGs: the pixels of the whole image, whatever is asked for, and whole images where there are no pieces."""

import io

import numpy as np
import pytest
from PIL import Image

import utils.jpeg
from utils.images import PiecewiseImage, load_image, open_image, save_jpeg
from utils.jpeg import Pieces, restart_interval


def noise(height, width, seed=0):
    """Noise in blocks of 5 pixels, so that color changes everywhere and does so smoothly."""
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    )
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def written(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (17, 129), (64, 128), (130, 61 * 16 + 3), (97, 15 * 16)])
@pytest.mark.parametrize("quality", [75, 95])
def test_every_part_equals_that_of_the_whole_image(tmp_path, height, width, quality):
    path, random = tmp_path / "a.jpg", np.random.default_rng(height)
    save_jpeg(noise(height, width), path, quality)
    whole, pieces = load_image(path), open_image(path)
    assert isinstance(pieces, PiecewiseImage) and pieces.shape == whole.shape
    np.testing.assert_array_equal(pieces[:, :], whole)
    for _ in range(60):
        top, left = random.integers(0, (height, width))
        bottom, right = random.integers((top, left), (height, width)) + 1
        np.testing.assert_array_equal(pieces[top:bottom, left:right], whole[top:bottom, left:right])


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_however_coarse_the_color_is(subsampling):
    data = written(noise(60, 400), subsampling=subsampling, restart_marker_blocks=5, quality=90)
    whole, pieces = np.array(Image.open(io.BytesIO(data))), Pieces(data)
    for left in range(0, 390):  # also the pixels on either side of each border
        np.testing.assert_array_equal(pieces[20:41, left : left + 9], whole[20:41, left : left + 9])


def test_only_what_is_asked_for_is_decoded(tmp_path, monkeypatch):
    save_jpeg(noise(640, 1024), tmp_path / "a.jpg", 90)
    pieces, decode, given = open_image(tmp_path / "a.jpg"), utils.jpeg.simplejpeg.decode_jpeg, []
    monkeypatch.setattr(
        utils.jpeg.simplejpeg, "decode_jpeg", lambda data, *a, **k: given.append(data) or decode(data, *a, **k)
    )
    assert pieces[320:352, 512:640].shape == (32, 128, 3)
    assert Image.open(io.BytesIO(given[0])).size == (3 * 128, 4 * 16)  # pixels next to it: color crosses borders
    assert len(given[0]) < (tmp_path / "a.jpg").stat().st_size / 15


@pytest.mark.parametrize("width", [*range(1, 700, 13), 1024, 2048, 61 * 16])
def test_markers_divide_a_row_of_blocks(width):
    columns, interval = -(-width // 16), restart_interval(width)
    assert columns % interval == 0 and interval >= min(8, columns)
    assert not any(columns % fewer == 0 for fewer in range(8, interval))


def test_pixels_are_those_without_markers(tmp_path):
    image = noise(200, 333)
    save_jpeg(image, tmp_path / "a.jpg", 85)
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.jpg"), np.array(Image.open(io.BytesIO(written(image, quality=85))))
    )
    assert (tmp_path / "a.jpg").stat().st_size < 1.02 * len(written(image, quality=85))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True, "restart_marker_blocks": 8},
        {"restart_marker_blocks": 3},  # which does not divide the 16 blocks of a row
        {"restart_marker_rows": 2},
    ],
    ids=str,
)
def test_other_jpegs_are_read_whole(tmp_path, options):
    (tmp_path / "a.jpg").write_bytes(written(noise(100, 256), **options))
    image = open_image(tmp_path / "a.jpg")
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, load_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_channels_are_read_whole(tmp_path, mode):
    Image.fromarray(noise(60, 256)).convert(mode).save(tmp_path / "a.jpg", restart_marker_blocks=8)
    np.testing.assert_array_equal(open_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg"))


def test_no_jpeg_at_all(tmp_path):
    Image.fromarray(noise(60, 256)).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(open_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg"))
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg: cannot read this image"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(OSError, match=r"b\.jpg"):
        open_image(tmp_path / "b.jpg")


def test_damaged_files_are_refused_in_the_words_of_whole_ones(tmp_path):
    path, random = tmp_path / "a.jpg", np.random.default_rng(5)
    save_jpeg(noise(150, 400), path, 90)
    data, raised = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged[: random.integers(1, len(data))] if random.random() < 0.3 else damaged)
        try:
            assert open_image(path)[20:90, 100:350].shape[2] == 3
        except (ValueError, OSError) as error:
            raised += 1
            assert str(error).startswith(f"{path}: cannot read this image") and "\n" not in str(error)
    assert raised > 50


def test_a_piece_that_cannot_be_decoded_is_left_to_whom_decodes_it_all(tmp_path):
    save_jpeg(noise(150, 400), tmp_path / "a.jpg", 90)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    (tmp_path / "a.jpg").write_bytes(data)
    image = open_image(tmp_path / "a.jpg")
    assert isinstance(image, PiecewiseImage)
    np.testing.assert_array_equal(image[:, :], load_image(tmp_path / "a.jpg"))


def test_what_is_no_rectangle_is_what_numpy_makes_of_it(tmp_path):
    save_jpeg(noise(150, 400), tmp_path / "a.jpg", 90)
    image, whole = open_image(str(tmp_path / "a.jpg")), load_image(tmp_path / "a.jpg")
    for part in (np.s_[200:50, 0:10], np.s_[0:20:2, 3:90], np.s_[::-1, :], np.s_[-30:, -50:-10], np.s_[:1000, 390:500]):
        np.testing.assert_array_equal(image[part], whole[part])


def test_a_header_that_others_skip_is_not_believed():
    data = written(noise(64, 128), restart_marker_blocks=8)
    hidden = written(noise(32, 256), restart_marker_blocks=8)
    frame = hidden[hidden.index(b"\xff\xc0") :][:19]
    filled = data[:2] + b"\xff\xff\xe1" + (len(frame) + 2).to_bytes(2, "big") + frame + data[2:]
    assert np.array(Image.open(io.BytesIO(filled))).shape == (64, 128, 3)
    with pytest.raises(ValueError, match="no sequential"):
        Pieces(filled)


def test_no_memory_for_pieces_is_said_as_of_whole_images(tmp_path, monkeypatch):
    save_jpeg(noise(64, 256), tmp_path / "a.jpg", 90)
    image = open_image(tmp_path / "a.jpg")

    def none_left(*_, **__):
        raise MemoryError

    monkeypatch.setattr(utils.jpeg.simplejpeg, "decode_jpeg", none_left)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot read this image \(not enough memory"):
        image[0:20, 0:20]
