"""Which images become train and which val."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from raw_data import write

from datasets.raw.splits import split_train_val


def split(images, root, train=None, val=None, fraction=0.1, seed=4073, **test):
    options = {"train_list": train, "val_list": val, "val_fraction": fraction, "seed": seed, **test}
    made = split_train_val(images, Namespace(output_dataset_path=root, **options))
    return {name: [path.name for path in paths] for name, paths in made.items()}


IMAGES = [Path("Train") / f"img_{i:04}.jpg" for i in range(1, 31)]
NAMES = [path.name for path in IMAGES]


def test_seeded_split(tmp_path, capsys):
    first = split(IMAGES, tmp_path)
    assert len(first["val"]) == 3 and sorted(first["train"] + first["val"]) == NAMES
    options = {"train_list": None, "val_list": None, "val_fraction": 0.1, "seed": 4073}
    assert json.loads((tmp_path / "split.json").read_text()) == options | first
    assert f"written to {tmp_path / 'split.json'}" in capsys.readouterr().out
    written = (tmp_path / "split.json").stat().st_mtime_ns
    assert split(IMAGES, tmp_path) == first
    assert (tmp_path / "split.json").stat().st_mtime_ns == written
    assert split(list(reversed(IMAGES)), tmp_path / "..") == first
    assert split(IMAGES, tmp_path, seed=1) != first
    assert len(split(IMAGES, tmp_path, fraction=0.5)["val"]) == 15
    assert len(split(IMAGES[:2], tmp_path, fraction=0.01)["val"]) == 1
    assert len(split(IMAGES[:2], tmp_path, fraction=0.9)["train"]) == 1


def test_lists_as_they_come(tmp_path):
    train = write(tmp_path / "train.txt", b"\xef\xbb\xbf" + "\r\n".join(NAMES[:20]).encode() + b"\r\n\r\n")
    names = [*(name[:-4] for name in NAMES[20:25]), "", "  IMG_0026.jpg  ", "x\\IMG_0027"]
    val = write(tmp_path / "val.txt", "\n".join(names))
    made = split(IMAGES[:27], tmp_path, train, val)
    assert made == {"train": NAMES[:20], "val": NAMES[20:27]}
    stored = json.loads((tmp_path / "split.json").read_text())
    assert stored["train_list"] == str(train) and stored["seed"] is None and stored["val"] == NAMES[20:27]


def test_images_in_neither_list_are_left_out_and_said(tmp_path, capsys):
    made = split(IMAGES, tmp_path, write(tmp_path / "t", "img_0001"), write(tmp_path / "v", "img_0002"))
    assert made == {"train": NAMES[:1], "val": NAMES[1:2]}
    assert "28 images are in none of the lists" in capsys.readouterr().err


def test_one_list_leaves_the_rest_to_the_other_split(tmp_path):
    one = write(tmp_path / "one.txt", "\n".join(NAMES[:10]))
    assert split(IMAGES, tmp_path, val=one) == {"train": NAMES[10:], "val": NAMES[:10]}
    assert split(IMAGES, tmp_path, train=one) == {"train": NAMES[:10], "val": NAMES[10:]}


@pytest.mark.parametrize(
    "train, val, message",
    [
        ("img_0001\n\nimg_0099.jpg", "img_0002", r"train.txt: line 3: .*img_0099.jpg"),
        ("img_0001\nimg_0002", "img_0003\nIMG_0002.jpg", r"val.txt: IMG_0002 also in .*train.txt"),
        ("img_0001", " \n", r"val.txt: names no image"),
        (None, "\n".join(NAMES), r"val.txt: leaves no image for train"),
    ],
)
def test_lists_that_cannot_be(tmp_path, train, val, message):
    texts = {"train.txt": train, "val.txt": val}
    files = [write(tmp_path / name, text) if text is not None else None for name, text in texts.items()]
    with pytest.raises(ValueError, match=message) as caught:
        split(IMAGES, tmp_path, *files)
    assert "\n" not in str(caught.value) and not (tmp_path / "split.json").exists()


def test_a_test_split_is_drawn_after_val(tmp_path, capsys):
    made = split(IMAGES, tmp_path, test_fraction=0.2)
    assert [len(made[name]) for name in ("train", "val", "test")] == [21, 3, 6]
    assert made["val"] == split(IMAGES, tmp_path / "..")["val"]
    assert "21 train, 3 val and 6 test images" in capsys.readouterr().out
    assert split(IMAGES, tmp_path, test_fraction=0.2) == made
    assert list(split(IMAGES, tmp_path)) == ["train", "val"]
    with pytest.raises(ValueError, match="cannot be divided into train, val and test"):
        split(IMAGES[:2], tmp_path, test_fraction=0.2)


def test_a_test_list_leaves_the_rest_to_the_others(tmp_path):
    test = write(tmp_path / "test.txt", "\n".join(NAMES[:10]))
    made = split(IMAGES, tmp_path, test_list=test, test_fraction=0.5)
    assert made["test"] == NAMES[:10] and len(made["val"]) == 2 and len(made["train"]) == 18
    write(test, "\n".join(NAMES[:5]))
    assert len(split(IMAGES, tmp_path, test_list=test, test_fraction=0.5)["test"]) == 5
    val = write(tmp_path / "val.txt", NAMES[4])
    with pytest.raises(ValueError, match=r"test.txt: IMG_0005 also in .*val.txt"):
        split(IMAGES, tmp_path, val=val, test_list=test, test_fraction=0.5)
