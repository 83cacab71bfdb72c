"""Names and annotations of a split as a few flat arrays, which forked loading processes share.

A list of Python objects would be copied by each of them, page by page, as their reference counts change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Annotations = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # see GS2D.prepared.load_annotations


class FileList(Sequence[Path]):
    """The paths of files of one folder, kept as their names' bytes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.folder = paths[0].parent
        names = [path.name.encode("utf-8", "surrogateescape") for path in paths]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._ends = np.cumsum([0, *map(len, names)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        name = self._names[self._ends[index] : self._ends[index + 1]].tobytes()
        return self.folder / name.decode("utf-8", "surrogateescape")


class KeptAnnotations:
    """What ``load`` gives for each image, read once.

    With ``skip_bad`` images whose annotations cannot be read have none here, and ``get`` is None for them.
    """

    def __init__(self, images: Sequence[Path], load: Callable[[Path], Annotations], skip_bad: bool) -> None:
        parts, self.known = [], np.ones(len(images), bool)
        nothing = np.zeros((0, 6), np.float32)
        for index, image in enumerate(images):
            try:
                points, distance, scales, rotations = load(image)
            except (OSError, ValueError):
                if not skip_bad:
                    raise
                self.known[index] = False
                parts.append(nothing)
                continue
            parts.append(np.hstack([points, distance[:, None], scales, rotations]).astype(np.float32, copy=False))
        self._ends = np.cumsum([0, *map(len, parts)])
        self._rows = np.concatenate(parts)  # float32 [T, 6]: x, y, distance, scales, rotation

    def get(self, index: int) -> Annotations | None:
        """Points [N, 2], neighbour distances [N], scales [N, 2] and rotations [N, 1] of image ``index``, as copies."""
        if not self.known[index]:
            return None
        rows = self._rows[self._ends[index] : self._ends[index + 1]]
        return rows[:, :2].copy(), rows[:, 2].copy(), rows[:, 3:5].copy(), rows[:, 5:].copy()
