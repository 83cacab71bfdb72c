"""UCF_CC_50: its folds, each image in one of five tests, and what the report says of them."""

import pytest
from commands import call, errors
from raw_data import make_ucf50, record, save_noise

from datasets.raw.annotations import find_ucf, split_folds

SMALL = ("--min-size", 32, "--workers", 1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_ucf50(tmp_path_factory.mktemp("ucf50") / "UCF_CC_50")


def prepare(source, out, fold, code=0, *options):
    paths = ("--input-dataset-path", source, "--output-dataset-path", out)
    return call("preprocess_dataset_ucf50.py", *paths, "--fold", fold, *SMALL, *options, code=code)


def test_the_five_folds_are_ten_images_each_in_the_order_of_their_numbers(raw):
    folds = split_folds(find_ucf(raw)[0])
    assert [[int(path.stem) for path in fold] for fold in folds] == [
        list(range(i, i + 10)) for i in (1, 11, 21, 31, 41)
    ]


def test_a_fold_is_prepared_and_checked(raw, tmp_path):
    out, err = prepare(raw.parent, tmp_path / "fold1", 1)  # the folder that holds UCF_CC_50
    entries = record(tmp_path / "fold1")
    assert len(entries) == 50 and not errors(err)
    test = {name for name in entries if name.startswith("test/")}
    assert test == {f"test/{i}.jpg" for i in range(1, 11)}
    assert entries["test/7.jpg"]["points"] == 6 and entries["test/7.jpg"]["dropped"] == 1
    assert sum(name.startswith("val/") for name in entries) == 4
    assert "of the published ucf50: train+val 40 of 40 images, test 10 of 10 images, 1,275 of 63,974 points" in out
    prepare(raw, tmp_path / "fold5", 5)
    assert {name for name in record(tmp_path / "fold5") if name.startswith("test/")} == {
        f"test/{i}.jpg" for i in range(41, 51)
    }


def test_wrong_folds_and_names(raw, tmp_path):
    assert "argument --fold: invalid choice: 6" in prepare(raw, tmp_path / "out", 6, 2)[1]
    save_noise(tmp_path / "in" / "people.jpg")
    line = errors(prepare(tmp_path / "in", tmp_path / "out", 1, 1)[1])[0]
    assert line.endswith("people.jpg: UCF_CC_50 calls its images 1.jpg to 50.jpg; rename or remove this one")
    (tmp_path / "in" / "people.jpg").rename(tmp_path / "in" / "3.jpg")
    line = errors(prepare(tmp_path / "in", tmp_path / "out", 1, 1)[1])[0]
    assert line == "error: 1 images cannot be divided into 5 folds; UCF_CC_50 has 50"
