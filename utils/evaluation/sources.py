"""Pictures to count from files, folders and videos, one after the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.cli import one_line
from utils.evaluation.video import frames_of
from utils.evaluation.windows import in_threads
from utils.files import PICTURES, find_files, read_points, unread_kinds
from utils.images import load_image

# Name; image uint8 [H, W, 3], or why there is none in one line; points [N, 2] where annotated.
Picture = tuple[str, np.ndarray | str, np.ndarray | None]
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class Source(NamedTuple):
    """A picture or video and the name that it goes by, or the one-line reason why there is nothing to open.

    ``points``: the file of its annotations. ``upright``: turned by its EXIF orientation, as people see it; the images of a
    prepared data set lie as their annotations do.
    """

    name: str
    path: Path
    reason: str | None = None
    points: Path | None = None
    upright: bool = True

    @property
    def is_video(self) -> bool:
        return not self.reason and self.path.suffix.lower() in VIDEOS


def find_sources(paths: Sequence[Path | str]) -> tuple[list[Source], list[str]]:
    """(Sources, notes): the files of ``paths``, in their order, and one line for each folder with files left out.

    A folder is read with its subfolders, sorted, without hidden files; of it only files with the suffixes ``PICTURES`` and
    ``VIDEOS`` count, the others are left out and noted with their number, as are subfolders that cannot be read. A file that
    is named itself always counts. Files that appear twice are taken once. A name is the file's name, in a folder its path
    below the folder; where two are the same, it is the whole path. What is missing, and a folder without pictures, is a
    source with a reason.
    """
    unique: dict[str, Source] = {}
    notes = []
    for path in map(Path, paths):
        names = {path: path.name}
        if path.is_dir():
            everything = find_files(path, onerror=lambda error: notes.append(one_line(error)))
            names = {f: f.relative_to(path).as_posix() for f in everything if f.suffix.lower() in PICTURES + VIDEOS}
            if len(names) < len(everything):
                skipped, unread = len(everything) - len(names), unread_kinds(map(str, everything))
                line = f"{path}: skipped {skipped} of {len(everything)} files, neither pictures nor videos"
                notes.append(f"{line}; {unread}: convert them to JPEG" if unread else line)
            if not names:
                reason = f"{path}: holds no picture or video ({', '.join(PICTURES + VIDEOS)}); check the path"
                unique.setdefault(os.path.realpath(path), Source(str(path), path, reason))
        for file, name in names.items():
            reason = None if file.exists() else f"{file}: no such file or folder; check the path"
            unique.setdefault(os.path.realpath(file), Source(name, file, reason))
    uses = Counter(source.name for source in unique.values())
    sources = [s if uses[s.name] == 1 else s._replace(name=os.path.abspath(s.path)) for s in unique.values()]
    return sources, notes


def open_pictures(sources: Sequence[Source], every: int, threads: int) -> Iterator[Picture]:
    """Each picture, decoded by threads while those before it are counted, and each ``every``-th frame of each video."""
    for is_video, some in groupby(sources, lambda source: source.is_video):
        if not is_video:
            yield from in_threads(_read, some, threads)
            continue
        for source in some:
            yield from ((*frame, None) for frame in frames_of(source.name, source.path, every))


def _read(source: Source) -> Picture:
    try:
        if source.reason:
            raise ValueError(source.reason)
        points = read_points(source.points)[:, :2] if source.points else None
        return source.name, load_image(source.path, source.upright), points
    except (OSError, ValueError, MemoryError) as error:
        return source.name, one_line(error), None
