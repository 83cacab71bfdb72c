"""The prepared data set as torch sees it: augmented crops for training, whole images for validation and test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datasets.transforms import Sample, augment, draw_augmentation, too_small
from GS2D.kernel import BlockKernel, block_diagonal, gst_kernel, kernel_command, stored_kernel
from GS2D.points import Annotations, fit_command, load_annotations
from utils.files import SPLITS, gaussians_path, kernel_path, list_images, points_path, read_points
from utils.images import image_size, load_image, open_image
from utils.pixels import to_planes


class TrainSample(NamedTuple):
    """A crop of c x c pixels and its n annotations, in pixels of the crop."""

    image: Tensor  # uint8 [3, c, c], RGB
    points: Tensor  # float32 [n, 2], (x, y)
    scales: Tensor  # float32 [n, 2], standard deviations of the Gaussians
    rotations: Tensor  # float32 [n, 1], radians
    targets: Tensor  # float32 [n], in [0.3, 1]
    name: str  # stem of the image
    short_side: float  # pixels, of the image that the crop was cut from, as rescaled
    kernel: Tensor | None = None  # K of the crop, sparse [n + 1, M] or [n, M], for losses that transport
    index: int = 0  # of the image in the data set
    skipped: tuple[str, ...] = ()  # why images before it could not be read


class EvalSample(NamedTuple):
    """A whole image and its annotated count."""

    image: Tensor  # uint8 [3, H, W], RGB
    count: float  # NaN where nobody annotated it
    name: str  # stem of the image


class Batch(NamedTuple):
    """Training samples, side by side: what a step needs as tensors of the batch, which a device gets in one go."""

    images: Tensor  # uint8 [B, 3, c, c]
    points: Tensor  # float32 [B, n, 2], zeros after the last point of a crop
    targets: Tensor  # float32 [B, n], zeros after the last
    counts: Tensor  # int64 [B], points of each crop
    kernel: BlockKernel | None  # of all crops
    received: Tensor | None  # float32 [R]: the target of each row of that kernel, 0 for the background
    sizes: list[int]  # as counts
    truths: list[float]  # sums of the targets
    indices: list[int]  # of the images in the data set
    names: list[str]
    skipped: list[str]


def collate(samples: Sequence[TrainSample]) -> Batch:
    """For ``DataLoader(collate_fn=collate)``: the loading process puts the batch together."""
    sizes = [len(sample.points) for sample in samples]
    points, targets = torch.zeros(len(samples), max(1, *sizes), 2), torch.zeros(len(samples), max(1, *sizes))
    for b, sample in enumerate(samples):
        points[b, : sizes[b]], targets[b, : sizes[b]] = sample.points, sample.targets
    kernel = received = None
    if samples[0].kernel is not None:
        kernel = block_diagonal([sample.kernel for sample in samples])
        received = torch.cat([F.pad(s.targets, (0, s.kernel.shape[0] - len(s.targets))) for s in samples])
    return Batch(
        torch.stack([sample.image for sample in samples]),
        points,
        targets,
        torch.tensor(sizes),
        kernel,
        received,
        sizes,
        targets.sum(dim=1).tolist(),
        [sample.index for sample in samples],
        [sample.name for sample in samples],
        [reason for sample in samples for reason in sample.skipped],
    )


class Crowd(Dataset):
    """The images of ``root/split``: ``TrainSample``s for "train", ``EvalSample``s for "val" and "test".

    A training sample is a function of (seed, epoch, index): ``crowd[epoch, index]``, or ``crowd[index]`` in the epoch that
    ``set_epoch`` says. It carries its transport kernel: what ``kernel`` makes of the augmented crop, a function of (points,
    scales, rotations, crop_size, short_side) such as ``losses.build_kernel`` gives (default: GST's), or with
    ``kernel_parameters`` its part of the stored kernel; None for losses that transport nothing. ``training`` asks for one kind
    of sample whatever the split. Without ``use_gaussians`` no fitted Gaussians are read, see ``load_annotations``. With
    ``skip_bad`` the next image takes the place of one that cannot be read, and a training sample says why. ``whole_targets``:
    see ``crop``, ``jitter``: see ``draw_augmentation``. A test split without any annotation file is one whose annotations are
    kept secret (NWPU-Crowd): its counts are NaN.

    Raises ``ValueError`` for an unknown split and ``FileNotFoundError`` for missing images, annotations or Gaussians;
    items raise ``ValueError``, naming the file, for what cannot be read or does not fit together.
    """

    def __init__(
        self,
        root: Path | str,
        crop_size: int | None,
        split: str,
        *,
        seed: int = 4073,
        use_gaussians: bool = True,
        training: bool | None = None,
        kernel: Callable[..., Tensor] | None = gst_kernel,
        kernel_parameters: Mapping[str, float] | None = None,
        whole_targets: float = 0.0,
        jitter: float = 0.0,
        skip_bad: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: {split!r}, must be one of {', '.join(SPLITS)}")
        self.root, self.crop_size, self.split = Path(root), crop_size, split
        self.seed, self.training = seed, split == "train" if training is None else training
        self.use_gaussians = use_gaussians and self.training
        self.kernel, self.kernel_parameters = kernel, kernel_parameters if self.training else None
        self._stride = int(self.kernel_parameters["stride"]) if self.kernel_parameters else None  # of stored kernels
        self.whole_targets, self.jitter, self.skip_bad = whole_targets, jitter, skip_bad
        self.images = list_images(self.root / split)
        self._annotations: list[Annotations | None] = [None] * len(self.images)
        self._epoch = 0
        self.annotated = split != "test" or self.training or any(self.images[0].parent.glob("*.npy"))
        if self.annotated:
            _require([points_path(image) for image in self.images], "run preprocess_dataset_*.py again")
        if self.use_gaussians:
            _require([gaussians_path(image) for image in self.images], f"run {fit_command(self.root / split)}")
        if self.kernel_parameters:
            _require([kernel_path(image) for image in self.images], f"run {kernel_command(self.root / split)}")

    def __len__(self) -> int:
        return len(self.images)

    def read_once(self) -> None:
        """Read every npy, every file of Gaussians and the size of every image.

        What is wrong with one is said before the first epoch (with ``skip_bad`` it is left for later), and loading
        processes that start from here on need not read annotations again.
        """
        for index, image in enumerate(self.images):
            try:
                self._annotations[index] = load_annotations(image, self.use_gaussians)
                height, width = image_size(image)
                if min(height, width) < self.crop_size:
                    raise ValueError(too_small(str(image), height, width, self.crop_size))
            except (OSError, ValueError):
                if not self.skip_bad:
                    raise

    def set_epoch(self, epoch: int) -> None:
        """Make the augmentation that of ``epoch``."""
        self._epoch = epoch

    def __getitem__(self, index: int | tuple[int, int]) -> TrainSample | EvalSample:
        epoch, index = index if isinstance(index, tuple) else (self._epoch, index)
        if index >= len(self):  # which ends an iteration
            raise IndexError(f"{self.root / self.split}: no image {index} among {len(self)}")
        skipped = []
        for place in ((index + step) % len(self) for step in range(len(self))):
            try:
                if not self.training:
                    return self._whole(place)
                return self._crop(epoch, place)._replace(skipped=tuple(skipped))
            except (OSError, ValueError) as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
        raise ValueError(f"{self.root / self.split}: none of {len(self)} images can be used; the last: {skipped[-1]}")

    def _whole(self, index: int) -> EvalSample:
        path = self.images[index]
        count = len(read_points(points_path(path))) if self.annotated else math.nan
        return EvalSample(to_planes(load_image(path)), float(count), path.stem)

    def _crop(self, epoch: int, index: int) -> TrainSample:
        path, size = self.images[index], self.crop_size
        whole = Sample(open_image(path), *(self._annotations[index] or load_annotations(path, self.use_gaussians)))
        generator, shape = np.random.default_rng([self.seed, epoch, index]), whole.image.shape[:2]
        drawn = draw_augmentation(generator, *shape, size, str(path), stride=self._stride, jitter=self.jitter)
        crop, targets, stays = augment(whole, drawn, size, self.whole_targets)
        short_side, kernel = min(shape) * drawn.scale, None
        if self.kernel_parameters:
            place, given = (drawn.left, drawn.top, size), (whole.points, whole.scales, whole.rotations)
            kernel = stored_kernel(path, shape, given, self.kernel_parameters, stays, place, drawn.flip)
        elif self.kernel:
            given = {"points": crop.points, "scales": crop.scales, "rotations": crop.rotations}
            try:
                kernel = self.kernel(**given, crop_size=size, short_side=short_side)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        tensors = (torch.from_numpy(array) for array in (crop.points, crop.scales, crop.rotations, targets))
        return TrainSample(to_planes(crop.image), *tensors, path.stem, short_side, kernel, index)


def _require(paths: Sequence[Path], remedy: str) -> None:
    """Raise ``FileNotFoundError`` unless all of ``paths``, which lie in one folder, exist."""
    folder = paths[0].parent  # listed once, which on a network disk is far cheaper than a look at each file
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [path.name for path in paths if path.name not in present]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(paths)} files are missing ({names}); {remedy}")
