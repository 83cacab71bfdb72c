"""Videos: their frames, the counts over time as a table and a plot, and one video with the density laid over its pictures."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import one_line
from utils.evaluation.figures import save_counts_figure
from utils.evaluation.windows import Window, density_map
from utils.files import atomic_write, make_folder

WHOLE = 0.9  # of the frames that a header announces, an estimate: fewer are a video that was cut off
SHOWN = 200  # frames of a video in the report: its pictures would be more than a browser can hold
OPACITY = 0.65  # of the highest density
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}  # of the annotated video
clock = tqdm.format_interval  # seconds -> "02:03", with hours "1:02:03"

# FFmpeg's own remarks on damaged videos would stand between the progress bar and the one line that names the file. It reads
# this when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def header(path: Path) -> tuple[float, int]:
    """Frames a second and number of frames, an estimate, as a video's header says; 25 and 0 where it says nothing sensible."""
    capture = cv2.VideoCapture(str(path))
    rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return rate if 0 < rate <= 1000 else 25.0, int(frames) if 0 < frames < 1e9 else 0


def frames_of(name: str, path: Path, every: int) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each ``every``-th frame of a video: its name (``clip.mp4 frame 000120``, from 0) and uint8 [H, W, 3] RGB, or a reason.

    A video that ends far before its header says, or of which nothing can be decoded, yields a reason after its frames.
    """
    (_, announced), frame, failure = header(path), 0, ""
    capture = cv2.VideoCapture(str(path))
    try:
        while capture.grab():
            if frame % every == 0:
                decoded, image = capture.retrieve()
                reason = f"{path}: frame {frame} cannot be decoded; the video is damaged"
                yield f"{name} frame {frame:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else reason
            frame += 1
    except cv2.error as error:  # a decoder may give up with an error of OpenCV's own instead of a frame
        failure = f" ({one_line(error)})"
    if failure or frame < max(1, WHOLE * announced):
        line = f"{path}: the header announces about {announced} frames, {frame} could be read{failure}"
        yield name, f"{line}; it is cut off or of a kind that OpenCV does not know: get it again, or convert it"


class VideoCounts:
    """The counts of a video, each ``every``-th frame, and if wanted the video with its density and counts.

    The report shows about ``SHOWN`` frames. They lie evenly over the video; ever farther apart where its header announces
    too few. ``film``: a file for the annotated video, .mp4 or .avi, or None; it gets its name when ``stack`` is left.
    """

    def __init__(self, path: Path, every: int, stack: contextlib.ExitStack, film: Path | None = None) -> None:
        self.rate, announced = header(path)
        self.every, self.stack, self.film, self.writer = every, stack, film, None
        self.frames: list[int] = []
        self.counts: list[float] = []
        self.expected = math.ceil(announced / every)  # frames, an estimate; 0: unknown
        self.step, self.shown = max(1, math.ceil(self.expected / SHOWN)), 0
        self.highest = 0.0  # density so far: the scale may only widen, so that neighbouring pictures do not flicker

    def add(self, frame: int, image: np.ndarray, parts: Sequence[Window], count: float) -> bool:
        """Note a frame -> whether it is one of those that are shown."""
        is_shown = len(self.frames) % self.step == 0
        self.frames.append(frame)
        self.counts.append(count)
        self.shown += is_shown
        if is_shown and self.shown % SHOWN == 0:
            self.step *= 2
        if self.film:
            density = density_map(parts).numpy()
            self.highest = max(self.highest, float(density.max()))
            picture = draw_density(image, density, self.highest, f"{count:.1f}   {clock(frame / self.rate)}")
            if not self.writer:
                self.size = image.shape[1] // 2 * 2, image.shape[0] // 2 * 2  # codecs take even ones
                self.writer = self.stack.enter_context(_open_film(self.film, self.rate / self.every, self.size))
            self.writer.write(cv2.resize(picture, self.size))
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


@contextlib.contextmanager
def _open_film(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """A writer of pictures uint8 [H, W, 3], BGR, of ``size`` (width, height); the file appears whole or not at all."""
    make_folder(path.parent)
    with atomic_write(path) as partial:
        codec = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
        writer = cv2.VideoWriter(str(partial), codec, rate, size)
        if not writer.isOpened():
            reason = f"OpenCV cannot write {size[0]} x {size[1]} pixels; try another suffix"
            raise ValueError(f"--video-out {path}: {reason}")
        try:
            yield writer
        finally:
            writer.release()


def draw_density(image: np.ndarray, density: np.ndarray, highest: float, label: str) -> np.ndarray:
    """uint8 [H, W, 3] in RGB and a density [H, W], drawn up to ``highest`` -> uint8 [H, W, 3] in BGR, as OpenCV writes it."""
    strength = np.clip(density / max(highest, 1e-12), 0, 1).astype(np.float32)
    colors = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    opacity = (OPACITY * np.sqrt(strength))[..., None]
    picture = (cv2.cvtColor(image, cv2.COLOR_RGB2BGR) * (1 - opacity) + colors * opacity).astype(np.uint8)
    scale = max(0.35, min(image.shape[:2]) / 500)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.5 * scale))
    (width, height), below = cv2.getTextSize(label, font, scale, thickness)
    margin = below + thickness
    picture[: height + 2 * margin, : width + 2 * margin] = 0
    cv2.putText(picture, label, (margin, height + margin), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return picture
