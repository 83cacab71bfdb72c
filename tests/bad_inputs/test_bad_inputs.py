"""Every bad input of the catalogue gives exactly its message, its exit code and no traceback."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from cases import CASES
from commands import call, errors
from spoil import Work, make_work
from training_runs import Tiny

import models
import train_gs

MESSAGES = yaml.safe_load(Path(__file__).with_name("messages.yml").read_text(encoding="utf-8"))
FOLLOWING = re.compile(r"error: \d+ of \d+ failed; mend them and run the same command again")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "work"
    folder.mkdir()
    make_work(folder)
    return folder


def test_the_table_and_the_cases_are_the_same():
    assert len(CASES) > 50 and [case.name for case in CASES] == list(MESSAGES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_gives_its_message(case, template, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(models, "build_model", Tiny)
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    case.spoil(Work(folder))
    expected = MESSAGES[case.name]
    _, err = call(*case.command.format(d=folder).split(), code=expected["code"])
    first, *others = errors(err)
    pattern = re.escape(expected["message"]).replace(r"\{any\}", ".*").replace(r"\{d\}", re.escape(str(folder)))
    assert re.fullmatch(pattern, first.partition("error: ")[2]), first
    assert len(others) <= 1 and all(FOLLOWING.fullmatch(line) for line in others)
