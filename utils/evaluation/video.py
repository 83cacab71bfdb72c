"""Videos: their frames, the counts over time as a table and a plot, and one video with the density laid over its pictures."""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import one_line
from utils.evaluation import Window, density_map
from utils.evaluation.figures import save_counts_figure
from utils.files import atomic_write, make_folder

WHOLE = 0.9  # of the frames that a header announces, an estimate: fewer are a video that was cut off
SHOWN = 200  # frames of a video in the report: its pictures would be more than a browser can hold
OPACITY = 0.65  # of the highest density
CODECS = {".mp4": ("avc1", "mp4v"), ".avi": ("MJPG",)}  # the first that OpenCV can write here
_clock = tqdm.format_interval  # seconds -> "02:03", with hours "1:02:03"

# FFmpeg's own remarks on damaged videos would stand between the progress bar and the one line that names the file. It reads
# this when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def header(path: Path) -> tuple[float, int]:
    """Frames a second and number of frames, an estimate, as a video's header says; 25 and 0 where it says nothing sensible."""
    capture = cv2.VideoCapture(str(path))
    rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return rate if 0 < rate <= 1000 else 25.0, int(frames) if 0 < frames < 1e9 else 0


def frames_of(
    name: str, path: Path, every: int, progress: Callable[[str], None]
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each ``every``-th frame of a video: its name (``clip.mp4 frame 000120``, from 0) and uint8 [H, W, 3] RGB, or a reason.

    A video that ends far before its header says, or of which nothing can be decoded, yields a reason after its frames; that
    its header announces a few more, an estimate, is only a line on stderr. ``progress`` gets where in the video the frame
    is, in time.
    """
    (rate, announced), frame = header(path), 0
    length = _clock(announced / rate) if announced else "unknown length"
    capture = cv2.VideoCapture(str(path))
    try:
        while capture.grab():
            if frame % every == 0:
                progress(f"{name} {_clock(frame / rate)} of about {length}")
                decoded, image = capture.retrieve()
                reason = f"{path}: frame {frame} cannot be decoded; the video is damaged"
                yield f"{name} frame {frame:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else reason
            frame += 1
    except cv2.error as error:  # a decoder may give up with an error of OpenCV's own instead of a frame
        yield name, f"{path}: decoding failed ({one_line(error)}); convert the video or get it again"
        return
    finally:
        capture.release()
    if not frame:
        yield name, f"{path}: cannot decode this video; it is cut off or of a kind that OpenCV does not know"
    elif frame < announced:
        line = f"{path}: the header announces about {announced} frames, {frame} could be read"
        if frame < WHOLE * announced:
            yield name, f"{line}; it is cut off or its header is wrong: get it again, or convert it"
        else:
            tqdm.write(line, file=sys.stderr)


class Series:
    """The counts of one video, of which the report shows about ``SHOWN`` frames.

    They lie evenly over the video; ever farther apart where its header announces too few.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.rate, announced = header(path)
        self.frames, self.counts = array("q"), array("d")
        self.step, self.shown = max(1, math.ceil(announced / every / SHOWN)), 0

    def add(self, frame: int, count: float) -> bool:
        """Note a frame; whether it is one of those that are shown."""
        self.frames.append(frame)
        self.counts.append(count)
        is_shown = (len(self.frames) - 1) % self.step == 0
        self.shown += is_shown
        if is_shown and self.shown % SHOWN == 0:
            self.step *= 2
        return is_shown

    def save(self, name: str, out: Path | None) -> dict[str, Any]:
        """Its figures; in ``out`` also a table and a plot."""
        counts, times = np.array(self.counts), np.array(self.frames) / self.rate
        peak = int(counts.argmax())
        if out:
            # The name of a file from outside the folder is its whole path.
            table, plot = (out / "videos" / f"{name.lstrip('/')}{suffix}" for suffix in (".csv", ".png"))
            make_folder(table.parent)
            rows, form = np.column_stack([self.frames, times, counts]), ("%d", "%.3f", "%.4f")
            with atomic_write(table) as partial:
                np.savetxt(partial, rows, form, ",", "\r\n", header="frame,time,count", comments="")
            save_counts_figure(plot, name, times, counts, "seconds")
        peaks = {"peak": float(counts[peak]), "peak_time": float(times[peak])}
        return {"frames": len(counts), "frames_per_second": self.rate, "mean": float(counts.mean()), **peaks}


class VideoCounts:
    """Takes the counts of frames as they come; ``save`` writes what is to be said of them.

    ``videos``: name -> path of what is counted, each ``every``-th frame of it. ``out``: a folder for videos/<name>.csv and
    .png, or None. ``video_out``: a file for the one video there is, or None; it gets its name when ``stack`` is left.
    Raises ``ValueError`` where there are more, or none, and for a suffix other than .mp4 and .avi.
    """

    def __init__(
        self,
        videos: Mapping[str, Path],
        every: int,
        stack: ExitStack,
        out: Path | None = None,
        video_out: Path | None = None,
        show_all: bool = False,
    ) -> None:
        self.videos, self.every, self.out, self.show_all = videos, every, out, show_all
        self.stack, self.video_out, self.writer = stack, video_out, None
        self.series: dict[str, Series] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.left_out = 0  # frames that were counted, but are not shown
        self.highest = 0.0  # density so far: the scale may only widen, so that neighbouring pictures do not flicker
        if video_out and len(videos) != 1:
            raise ValueError(f"--video-out {video_out}: one file for {len(videos)} videos; name one in --images")
        if video_out and video_out.suffix.lower() not in CODECS:
            raise ValueError(f"--video-out {video_out}: must end in {' or '.join(CODECS)}")
        if video_out:
            make_folder(video_out.parent)

    def add(self, name: str, image: np.ndarray, parts: Sequence[Window], count: float) -> bool:
        """Note an image; whether it is a frame that the report leaves out. Pictures are nothing to it."""
        video, _, frame = name.rpartition(" frame ")
        if video not in self.videos:
            return False
        if video not in self.series:
            self.series[video] = Series(self.videos[video], self.every)
        series = self.series[video]
        shown = series.add(int(frame), count) or self.show_all
        self.left_out += not shown
        if self.video_out:
            density = density_map(list(parts)).numpy()
            self.highest = max(self.highest, float(density.max()))
            picture = draw_density(image, density, self.highest, f"{count:.1f}   {_clock(int(frame) / series.rate)}")
            self.writer = self.writer or self._open(image, series.rate / self.every)
            self.writer.write(cv2.resize(picture, self.size))
        return not shown

    def save(self) -> list[str]:
        """Write tables and plots, and end the video -> what is said of each."""
        lines = []
        for name, series in self.series.items():
            facts = self.facts[name] = series.save(name, self.out)
            where = f"peak {facts['peak']:.2f} at {_clock(facts['peak_time'])}"
            lines.append(f"{name}: {facts['frames']} frames counted, mean {facts['mean']:.2f}, {where}")
        if self.writer:
            self.writer.release()
            if not self.partial.exists() or not self.partial.stat().st_size:
                raise OSError("the encoder wrote nothing")
            lines.append(f"{self.video_out}: the video with its density, {self.codec}")
        return lines

    def _open(self, image: np.ndarray, rate: float) -> cv2.VideoWriter:
        """The writer of the annotated video."""
        height, width = image.shape[:2]
        self.size = width // 2 * 2, height // 2 * 2  # codecs take even ones
        self.partial = self.stack.enter_context(atomic_write(self.video_out))
        level = cv2.utils.logging.setLogLevel(0)  # of an encoder that is not there: another takes its place
        for self.codec in CODECS[self.video_out.suffix.lower()]:
            writer = cv2.VideoWriter(str(self.partial), cv2.VideoWriter_fourcc(*self.codec), rate, self.size)
            if writer.isOpened():
                break
        cv2.utils.logging.setLogLevel(level)
        self.stack.callback(writer.release)
        if not writer.isOpened():
            reason = f"OpenCV cannot write {width} x {height} pixels; try another suffix"
            raise ValueError(f"--video-out {self.video_out}: {reason}")
        return writer


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
