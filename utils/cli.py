"""What every script does at its edges: one-line errors, exit codes, worker processes with progress."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
LOG_SECONDS = 60.0  # from one line of a progress bar in a log file to the next


class Outcome(NamedTuple):
    """What became of one item: its result, or the one-line reason why there is none."""

    item: Any
    result: Any
    error: str | None


def run_script(main: Callable[[], int | None]) -> None:
    """Run ``main`` and exit: 0, its return value, 1 with one line on stderr for what a user can mend, 130 for Ctrl-C.

    ``GST_TRACEBACK=1`` in the environment shows the traceback as well.
    """
    try:
        code = main() or 0
    except KeyboardInterrupt as interruption:
        _close_bars()
        goes_on = str(interruption) or "the same command goes on where this one stopped"
        print(f"interrupted; {goes_on}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except (OSError, ValueError) as error:
        if os.environ.get("GST_TRACEBACK"):
            raise
        _close_bars()
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = EXIT_FAILED
    sys.exit(code)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """In this block a request to end, as a cluster sends before it kills, is answered as Ctrl-C is."""

    asked = []

    def interrupt(*_: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # loading processes that end as well are no error
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except Exception:
        if asked:  # the request reached other processes of the group first, and their end was noticed
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_bars() -> None:
    """End the lines of progress bars, so that what is printed next has a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with the file that an operating-system error is about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and the space left"
    if "Original Traceback" in str(error):  # a DataLoader's worker wraps the message into its traceback
        return str(error).strip().splitlines()[-1].partition(": ")[2]
    return " ".join(str(error).split()) or type(error).__name__


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProgressBar(tqdm):
    """A bar that is drawn all the time on a terminal; in a log file a whole line a minute, none for what is short."""

    def __init__(self, **options: Any) -> None:
        self._is_terminal, self._next_line = sys.stderr.isatty(), time.monotonic() + LOG_SECONDS
        super().__init__(**({"dynamic_ncols": True} if self._is_terminal else {"mininterval": LOG_SECONDS}) | options)

    def display(self, *arguments: Any, **options: Any) -> bool | None:
        if self._is_terminal:
            return super().display(*arguments, **options)
        if time.monotonic() >= self._next_line:  # tqdm also asks for it behind each line of ``tqdm.write``
            self._next_line = time.monotonic() + LOG_SECONDS
            self.fp.write(f"{self}\n")
        return False

    def clear(self, *arguments: Any, **options: Any) -> None:
        if self._is_terminal:
            super().clear(*arguments, **options)

    def close(self) -> None:
        self.delay = self.delay if self._is_terminal else math.inf  # there is no line to end
        super().close()


def for_each(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    description: str,
    *,
    threads: bool = False,
    status: Callable[[Any], str] | None = None,
) -> Iterator[Outcome]:
    """Apply ``function`` to every item and yield the outcomes in the order of ``items``, with a progress bar.

    ``workers`` processes (``threads=True``: threads, for functions that release the interpreter's lock); with one worker
    everything runs here. An ``OSError``, ``ValueError`` or ``MemoryError`` concerns its item only and becomes an outcome's
    ``error``. ``status`` turns a result into what the bar shows of it.
    """

    def advance(outcome: Outcome) -> None:
        if status and outcome.error is None:
            bar.set_postfix_str(status(outcome.result), refresh=False)
        bar.update()

    with ProgressBar(total=len(items), desc=description, unit="img") as bar:
        if workers <= 1 or len(items) <= 1:
            for item in items:
                outcome = attempt(function, item)
                advance(outcome)
                yield outcome
            return
        workers, others = min(workers, len(items)), set(multiprocessing.active_children())
        if threads:
            pool: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(workers)
        else:
            # "spawn": a forked child may inherit locks that OpenMP threads of the parent held.
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            futures = [pool.submit(attempt, function, item) for item in items]
            for future in futures:
                future.add_done_callback(lambda done: done.cancelled() or done.exception() or advance(done.result()))
            for future in futures:
                yield future.result()
        # The last two come from starting a worker, also while another one dies; those of the items are outcomes.
        except (concurrent.futures.process.BrokenProcessPool, OSError, ValueError):
            if threads or os.environ.get("GST_TRACEBACK"):
                raise
            # The pool stops the workers that it knows, and would wait for ever for one that was just being started.
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise OSError(
                f"{description}: a worker process was killed or could not be started (out of memory?); finished files are "
                f"kept, run the same command again with fewer --workers than {workers}"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def report_failures(outcomes: Sequence[Outcome]) -> int:
    """Print one line on stderr for each failed item; the exit code that follows from them."""
    failures = [outcome for outcome in outcomes if outcome.error]
    for failure in failures:
        print(f"error: {failure.error}", file=sys.stderr)
    if failures:
        what = f"{len(failures)} of {len(outcomes)} failed"
        print(f"error: {what}; mend them and run the same command again", file=sys.stderr)
    return EXIT_FAILED if failures else 0


def attempt(function: Callable[[Any], Any], item: Any) -> Outcome:
    """What becomes of one item; an ``OSError``, ``ValueError`` or ``MemoryError`` is its ``error``."""
    try:
        return Outcome(item, function(item), None)
    except (OSError, ValueError, MemoryError) as error:
        if os.environ.get("GST_TRACEBACK"):
            raise
        return Outcome(item, None, one_line(error))


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it, and workers finish or drop their item.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One image is one core's work; torch reads this when the worker imports it.
    os.environ["OMP_NUM_THREADS"] = "1"
