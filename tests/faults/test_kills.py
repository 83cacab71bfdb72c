"""Killed at random moments, every stage goes on to the same files; the long form is ``bash scripts/faults.sh``."""

import os

import harness
import pytest

KILLS = int(os.environ.get("GST_KILLS", 2))
STAGES = ["preprocess", "splat", "clean", "kernels", "train", "train anew", "train from a file", "test"]
STAGES += ["preprocess, 2 workers"] if KILLS > 2 else []


@pytest.mark.parametrize("name", STAGES)
def test_killed_and_run_again(name, stages, tmp_path):
    problems = harness.kill_stage(stages[name], tmp_path, KILLS, seed=int(os.environ.get("GST_SEED", 1)))
    assert not problems


def test_what_is_compared_tells_files_apart(stages, tmp_path):
    """A comparison that cannot fail would prove nothing."""
    for stage in stages.values():
        assert not harness.broken(stage.inputs)
    folder = stages["kernels"].inputs
    state = harness.contents(folder)
    name = next(name for name in state if name.endswith("_gs_params.h5"))
    assert harness.differences(state, {**state, name: state[name][:-1]}) == [f"{name} differs"]
    for suffix in ("a.jpg", "a.npy", "a_gs_params.h5", "a.tar", "a.json", "kernels/a_kernel.h5", "a.csv", "a.html"):
        path = tmp_path / suffix
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a,b\nc")
    assert len(harness.broken(tmp_path)) == 8
    (tmp_path / ".a.vm.1.partial.jpg").touch()
    assert len(harness.temporary(tmp_path)) == 1


def test_a_kill_is_seen_as_one(stages, tmp_path):
    assert harness.kill(stages["train"].script, stages["train"].arguments(tmp_path), 0)
