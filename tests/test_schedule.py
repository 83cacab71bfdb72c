"""How many epochs fit into a given time."""

import pytest

from GS2D.options import KERNEL_OPTIONS
from utils.training import schedule, train_options
from utils.training.schedule import TimeBudget, epochs_to_begin_with


def test_epochs_follow_the_pace(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    budget = TimeBudget(10, 3)  # goes on with epoch 3
    now[0] = 7.5
    assert budget.elapsed() == 2.5 and TimeBudget(10, 3, spent=60).elapsed() == 60
    # 20 s, of which most is starting up: at this pace 15 epochs
    assert budget.epochs(3.5, 20) == 3 + int(0.5 + 0.97 * 580 / 40)
    # half an epoch in ten seconds from then on
    assert budget.epochs(4.0, 30) == 4 + int(0.97 * 570 / 20)
    assert budget.epochs(20.2, 595) == 21  # the epoch under way
    assert budget.epochs(21.0, 700) == 21
    with pytest.raises(ValueError, match="--minutes 1: an epoch takes about 13.3 minutes; give more, or --epochs"):
        TimeBudget(1, 0).epochs(0.1, 80)


def test_minutes_count_whatever_epochs_were_asked_for():
    assert epochs_to_begin_with(5, 1200, 0, {}) == 1200
    stopped = {"epochs": 1900, "config": {"minutes": 5.0}}
    assert epochs_to_begin_with(5, 1200, 1301, stopped) == 1302  # more than --epochs, and not done
    assert epochs_to_begin_with(5, 1200, 1900, stopped) == 1900
    assert epochs_to_begin_with(6, 1200, 1900, stopped) == 1901
    assert epochs_to_begin_with(5, 1200, 2, {"epochs": 2, "config": {"minutes": None}}) == 1200


@pytest.mark.parametrize(("processors", "loaders"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (64, 8)])
def test_loading_processes_leave_one_processor_to_the_training(processors, loaders, monkeypatch):
    """For each of two GPUs."""
    monkeypatch.setattr(train_options, "default_workers", lambda: processors * 2)
    options = ["--data-dir", "d", "--device", "0,1"]
    assert train_options.parse_train_options(("vgg",), ("gst",), KERNEL_OPTIONS, options).num_workers == loaders
