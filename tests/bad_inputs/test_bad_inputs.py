"""Every bad input gives one line that names file or option, value and remedy, its exit code and no traceback."""

import re
import shutil

import pytest
from cases import CASES
from commands import call, errors
from spoil import Work, make_work
from training_runs import Tiny

import models
import train_gs

FOLLOWING = re.compile(r"error: \d+ of \d+ failed; mend them and run the same command again")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "work"
    folder.mkdir()
    make_work(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_named_with_its_remedy(case, template, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(models, "build_model", Tiny)
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    case.spoil(Work(folder))
    _, err = call(*case.command.format(d=folder).split(), code=case.code)
    first, *others = errors(err)
    pattern = ".*".join(re.escape(words.format(d=folder)) for words in case.words)
    assert re.search(pattern, first), first
    assert len(others) <= 1 and all(FOLLOWING.fullmatch(line) for line in others)
