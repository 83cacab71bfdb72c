"""Counts of videos over time: a table and a plot for each, and one video with the density laid over its pictures."""

from __future__ import annotations

import contextlib
import csv
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.evaluation import Window, density_map
from utils.evaluation.figures import save_counts_figure
from utils.evaluation.sources import Source
from utils.files import atomic_write, make_folder

COLUMNS = ("frame", "time", "count")
SHOWN = 200  # frames of a video in the report: its pictures would be more than a browser can hold
OPACITY = 0.65  # of the highest density
CODECS = {".mp4": (("avc1", "H.264"), ("mp4v", "MPEG-4")), ".avi": (("MJPG", "Motion JPEG"),)}


class VideoCounts:
    """Takes the counts of frames as they come, in constant memory; a context, at whose end all files are on the disk.

    ``sources``: what is counted (``utils.evaluation.sources.find_sources``), of which each ``every``-th frame comes. ``out``: a folder
    for videos/<name>.csv and .png, or None. ``video_out``: a file for the one video among the sources, or None.
    Raises ``ValueError`` where there are more, or none, and for a suffix other than .mp4 and .avi.
    """

    def __init__(
        self, sources: Sequence[Source], every: int, out: Path | None, video_out: Path | None, show_all: bool = False
    ) -> None:
        self.paths = {source.name: source.path for source in sources if source.is_video and not source.reason}
        self.every, self.out, self.video_out, self.show_all = every, out, video_out, show_all
        self.facts: dict[str, dict[str, Any]] = {}
        self.left_out = 0  # frames that were counted, but are not shown
        self._series: _Series | None = None
        self._annotated: _Annotated | None = None
        self._said: list[str] = []
        if video_out and len(self.paths) != 1:
            raise ValueError(f"--video-out {video_out}: one file for {len(self.paths)} videos; name one in --images")
        if video_out and video_out.suffix.lower() not in CODECS:
            raise ValueError(f"--video-out {video_out}: must end in {' or '.join(CODECS)}")

    def __enter__(self) -> VideoCounts:
        self._stack = contextlib.ExitStack()
        if self.video_out and not self.video_out.parent.is_dir():
            make_folder(self.video_out.parent)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._stack.__exit__(kind, error, traceback)

    def add(self, name: str, image: np.ndarray, parts: Sequence[Window], count: float) -> bool:
        """Note an image; whether it is a frame that the report leaves out. Pictures are nothing to it.

        At most about ``SHOWN`` frames are shown, evenly over the video; more, ever farther apart, where its header announces
        too few. With ``show_all`` all are.
        """
        video, _, frame = name.rpartition(" frame ")
        if video not in self.paths:
            return False
        if self._series is None or self._series.name != video:
            self._finish()
            self._series = _Series(video, self.paths[video], self.every)
        series = self._series
        series.add(int(frame), count)
        if self.video_out:
            if self._annotated is None:
                partial = self._stack.enter_context(atomic_write(self.video_out))
                self._annotated = _Annotated(partial, self.video_out, series.rate / self.every, image.shape[:2])
                self._stack.callback(self._annotated.writer.release)
            self._annotated.add(image, density_map(list(parts)).numpy(), series.label())
        shown = series.shows() or self.show_all
        self.left_out += not shown
        return not shown

    def _finish(self) -> None:
        """Write what belongs to the video that has ended."""
        if self._annotated:
            self._annotated.close()
            self._said = [f"{self.video_out}: {self._annotated.codec}"]
            self._annotated = None
        series, self._series = self._series, None
        if series is None:
            return
        self.facts[series.name] = series.summary()
        if self.out:
            name = series.name.lstrip("/")  # of a file from outside the folder: its whole path
            table, plot = (self.out / "videos" / f"{name}{suffix}" for suffix in (".csv", ".png"))
            make_folder(table.parent)
            series.save(table)
            save_counts_figure(plot, series.name, series.times(), np.array(series.counts), "seconds")

    def lines(self) -> list[str]:
        """What is said of each video."""
        return [
            f"{name}: {facts['frames']} frames counted, mean {facts['mean']:.2f}, "
            f"peak {facts['peak']:.2f} at {_clock(facts['peak_time'])}"
            for name, facts in self.facts.items()
        ] + self._said


class _Series:
    """The counts of one video: 16 bytes a frame."""

    def __init__(self, name: str, path: Path, every: int) -> None:
        capture = cv2.VideoCapture(str(path))
        rate, announced = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        self.name, self.rate = name, rate if math.isfinite(rate) and 0 < rate <= 1000 else 25.0
        self.frames, self.counts = array("q"), array("d")
        self.step = max(1, math.ceil(announced / every / SHOWN)) if 0 < announced < 1e9 else 1
        self.shown = 0

    def add(self, frame: int, count: float) -> None:
        self.frames.append(frame)
        self.counts.append(count)

    def shows(self) -> bool:
        """Whether the last frame is one of those that are shown."""
        if (len(self.frames) - 1) % self.step:
            return False
        self.shown += 1
        if self.shown % SHOWN == 0:
            self.step *= 2
        return True

    def times(self) -> np.ndarray:
        """Seconds from the beginning, by the header's frame rate."""
        return np.array(self.frames) / self.rate

    def label(self) -> str:
        return f"{self.counts[-1]:.1f}   {_clock(self.frames[-1] / self.rate)}"

    def summary(self) -> dict[str, Any]:
        counts = np.array(self.counts)
        peak = int(counts.argmax())
        return {
            "frames": len(counts),
            "frames_per_second": self.rate,
            "mean": float(counts.mean()),
            "peak": float(counts[peak]),
            "peak_time": self.frames[peak] / self.rate,
        }

    def save(self, path: Path) -> None:
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(
                (frame, f"{frame / self.rate:.3f}", f"{count:.4f}") for frame, count in zip(self.frames, self.counts)
            )


class _Annotated:
    """A video that is being written; every picture with its density on it and its count in a corner."""

    def __init__(self, partial: Path, final: Path, rate: float, size: tuple[int, int]) -> None:
        self.partial, self.final = partial, final
        self.size = size[1] // 2 * 2, size[0] // 2 * 2  # width, height: codecs take even ones
        self.highest = 0.0
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(0)  # of an encoder that is not there: another takes its place
        try:
            for code, self.codec in CODECS[final.suffix.lower()]:
                self.writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*code), rate, self.size)
                if self.writer.isOpened():
                    return
        finally:
            cv2.utils.logging.setLogLevel(level)
        raise ValueError(f"--video-out {final}: OpenCV cannot write {size[1]} x {size[0]} pixels; try another suffix")

    def add(self, image: np.ndarray, density: np.ndarray, label: str) -> None:
        # Its scale may only widen, so that neighbouring pictures do not flicker.
        self.highest = max(self.highest, float(density.max()))
        self.writer.write(cv2.resize(draw_density(image, density, self.highest, label), self.size))

    def close(self) -> None:
        self.writer.release()
        if not self.partial.exists() or not self.partial.stat().st_size:
            raise OSError(f"{self.final}: the encoder wrote nothing; check the space left")


def draw_density(image: np.ndarray, density: np.ndarray, highest: float, label: str) -> np.ndarray:
    """uint8 [H, W, 3] in RGB and a density [H, W], drawn up to ``highest`` -> uint8 [H, W, 3] in BGR, as OpenCV writes it."""
    strength = np.clip(density / max(highest, 1e-12), 0, 1).astype(np.float32)
    colors = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    opacity = (OPACITY * np.sqrt(strength))[..., None]
    picture = (cv2.cvtColor(image, cv2.COLOR_RGB2BGR) * (1 - opacity) + colors * opacity).astype(np.uint8)
    scale = max(0.35, min(image.shape[:2]) / 500)
    thickness = max(1, round(1.5 * scale))
    (width, height), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    margin = below + thickness
    cv2.rectangle(picture, (0, 0), (width + 2 * margin, height + 2 * margin), (0, 0, 0), cv2.FILLED)
    place, white = (margin, height + margin), (255, 255, 255)
    cv2.putText(picture, label, place, cv2.FONT_HERSHEY_SIMPLEX, scale, white, thickness, cv2.LINE_AA)
    return picture


def _clock(seconds: float) -> str:
    """``1:02:03.4``, without hours where there are none."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
