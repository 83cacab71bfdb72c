"""Pictures to count from files, folders and videos, one after the other."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import one_line
from utils.evaluation.containers import is_cut_off
from utils.files import PICTURES, unread_kinds

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

# FFmpeg's own remarks on damaged videos would stand between the progress bar and the one line that names the file. It reads
# this when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Source(NamedTuple):
    """A picture or video and the name that it goes by, or the one-line reason why there is nothing to open."""

    name: str
    path: Path
    reason: str | None = None

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(paths: Sequence[Path | str]) -> tuple[list[Source], list[str]]:
    """(Sources, notes): the files of ``paths``, in their order, and one line for each folder with files left out.

    A folder is read with its subfolders, sorted, without hidden files and without following links to folders; of it only
    files with the suffixes ``PICTURES`` and ``VIDEOS`` count, the others are left out and noted with their number, as are
    subfolders that cannot be read. A file that is named itself always counts. Files that appear twice are taken once. A
    name is the file's name, in a folder its path below the folder; where two are the same, it is the whole path. What is
    missing, and a folder without pictures, is a source with a reason.
    """
    found: dict[str, Source] = {}
    notes = []
    for path in map(Path, paths):
        if path.is_dir():
            files, others, unreadable = _folder(path)
            notes += map(one_line, unreadable)
            if others:
                total, unread = len(others) + len(files), unread_kinds(others)
                line = f"{path}: skipped {len(others)} of {total} files, neither pictures nor videos"
                notes.append(f"{line}; {unread}: convert them to JPEG" if unread else line)
            if not files:
                reason = f"{path}: holds no picture or video ({', '.join(PICTURES + VIDEOS)}); check the path"
                found.setdefault(os.path.realpath(path), Source(str(path), path, reason))
            names = [(file, file.relative_to(path).as_posix()) for file in files]
        else:
            names = [(path, path.name)]
        for file, name in names:
            reason = None if file.exists() else f"{file}: no such file or folder; check the path"
            found.setdefault(os.path.realpath(file), Source(name, file, reason))
    uses = Counter(source.name for source in found.values())
    sources = [s if uses[s.name] == 1 else s._replace(name=os.path.abspath(s.path)) for s in found.values()]
    return sources, notes


def open_images(
    paths: Sequence[Path | str],
    load: Callable[[Path], np.ndarray],
    every: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each picture and each ``every``-th frame of each video of ``paths``: its name and image, or why there is none.

    Yields (name, uint8 [H, W, 3] RGB) or (name, one-line reason); names are unique (see ``find_sources``), those of
    frames ``clip.mp4 frame 000120``, counted from 0. One image is in memory at a time. ``load`` decodes a picture and raises
    ``OSError``, ``ValueError`` or ``MemoryError`` (such as ``utils.images.load_image``). A video that is
    cut off, or of which nothing can be decoded, yields a reason after its frames; that its header announces more frames,
    which is an estimate, is only a line on stderr, as is each folder with files that are skipped. ``progress`` gets where
    in a video the frame is, in time. Raises ``ValueError`` where ``paths`` is empty or ``every`` below 1.
    """
    if every < 1:
        raise ValueError(f"every: {every}, must be at least 1: that every n-th frame of a video is taken")
    if not paths:
        raise ValueError("paths: none given; name pictures, videos or folders")
    sources, notes = find_sources(paths)
    for line in notes:
        print(line, file=sys.stderr)
    return _open(sources, load, every, progress)


def _open(
    sources: list[Source],
    load: Callable[[Path], np.ndarray],
    every: int,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, np.ndarray | str]]:
    for source in sources:
        if source.reason:
            yield source.name, source.reason
        elif source.is_video:
            yield from _frames(source, every, progress)
        else:
            try:
                image: np.ndarray | str = load(source.path)
            except (OSError, ValueError, MemoryError) as error:
                image = one_line(error)
            yield source.name, image


def _folder(folder: Path) -> tuple[list[Path], list[str], list[OSError]]:
    """The pictures and videos below a folder, sorted; the names of its other files; subfolders that cannot be read."""
    files, others, unreadable = [], [], []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in PICTURES + VIDEOS and not name.startswith("."):
                files.append(Path(parent, name))
            else:
                others += [name] if not name.startswith(".") else []
    return sorted(files), others, unreadable


def _frames(source: Source, every: int, progress: Callable[[str], None]) -> Iterator[tuple[str, np.ndarray | str]]:
    path = source.path
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            yield source.name, f"{path}: cannot decode this video; it is cut off or of a kind that OpenCV does not know"
            return
        announced, rate, frame = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS), 0
        length = _clock(announced / rate) if announced > 0 and rate > 0 else "unknown length"
        while capture.grab():
            if frame % every == 0:
                progress(f"{source.name} {_clock(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)} of about {length}")
                decoded, image = capture.retrieve()
                name = f"{source.name} frame {frame:06d}"
                if decoded:
                    yield name, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                else:
                    yield name, f"{path}: frame {frame} cannot be decoded; the video is damaged"
            frame += 1
    # A decoder may give up with an error of OpenCV's own instead of a frame.
    except cv2.error as error:
        yield source.name, f"{path}: decoding failed ({one_line(error)}); convert the video or get it again"
        return
    finally:
        capture.release()
    if not frame:
        yield source.name, f"{path}: not one frame can be decoded; the video is damaged, get it again"
    elif is_cut_off(path):
        yield source.name, f"{path}: ends after {frame} frames, before its container says; it is cut off, get it again"
    elif frame < announced:
        tqdm.write(f"{path}: the header announces about {announced} frames, {frame} could be read", file=sys.stderr)


def _clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{max(int(seconds), 0) // 60}:{max(int(seconds), 0) % 60:02}"
