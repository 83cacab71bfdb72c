"""Reading image files of all kinds, and of none."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.images import MAX_PIXELS, load_image, save_jpeg

TREES = Path(__file__).resolve().parents[1] / "examples" / "trees"


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    Image.fromarray(np.full((20, 30, 3), 255, np.uint8)).convert(mode).save(path)
    image = load_image(path)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8 and image.min() >= 254


def test_the_orientation_of_the_camera_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for display
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert Image.open(tmp_path / "a.jpg").getexif()[0x0112] == 6
    assert load_image(tmp_path / "a.jpg").shape == (20, 30, 3)


def png_header(width, height):
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data)) + struct.pack(">I", 9) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    "name, cause", [("empty", ""), ("cut", "truncated"), ("text", ""), ("bomb", "30000 x 30000"), ("deep", "8 bits")]
)
def test_unreadable_images_are_one_line(tmp_path, name, cause):
    path = tmp_path / f"{name}.png"
    if name == "cut":
        path.write_bytes((TREES / "Test" / "img_0051.jpg").read_bytes()[:60_000])
    elif name == "deep":
        Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(path)
    else:
        path.write_bytes({"empty": b"", "text": b"<html>404</html>", "bomb": png_header(30_000, 30_000)}[name])
    with pytest.raises(ValueError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and ";" in message
    assert cause in message


def test_large_photographs_are_not_taken_for_an_attack(tmp_path):
    """Pillow alone refuses more than 179 megapixels; here the missing data are what is wrong."""
    assert 14_000 * 13_000 < MAX_PIXELS
    (tmp_path / "a.png").write_bytes(png_header(14_000, 13_000))
    with pytest.raises(ValueError, match="cut off"):
        load_image(tmp_path / "a.png")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(OSError) as caught:
            load_image(path)
        assert caught.value.filename == str(path)


def test_a_jpeg_appears_whole_or_not_at_all(tmp_path):
    save_jpeg(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.jpg", 75)
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(OSError, match=r"a.jpg: cannot write"):
        save_jpeg(np.zeros((70_000, 8, 3), np.uint8), tmp_path / "a.jpg", 75)
    assert (tmp_path / "a.jpg").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
