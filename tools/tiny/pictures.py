"""Pictures for tuning the tiny model's attention, and the labels that give their targets."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.files import write_atomically
from tools.scenes.draw import Scene, draw_scene
from tools.scenes.noise import draw_noise_scene
from tools.tiny import data as tiny_data
from tools.tiny import teacher as tiny_teacher

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256  # pixels of a view
CELLS = SIDE // tiny_teacher.CELL
CENTRES = slice(tiny_teacher.CELL // 2, None, tiny_teacher.CELL)  # the pixels that cells are read at
SHARES = (0.0, 0.3, 0.5, 1.0)  # of neighbours with one mean colour in a drawn scene
CHANCES = (0.4, 0.3, 0.2, 0.1)  # of each share


@dataclass(frozen=True, slots=True)
class TuneRecipe:
    """Everything that determines the result, except the photographs and the model."""

    seed: int = 0
    views: int = 2000
    steps: int = 6800
    batch: int = 8  # crops of 192 pixels; half of it whole views
    whole_after: float = 0.5  # part of the steps after which whole views are trained on
    rate: float = 6e-4
    ema: float = 0.998
    scenes: float = 0.25  # part of the pictures that are drawn scenes with exact masks
    noise_scenes: float = 0.2  # part that are drawn scenes filled with 1/f noise
    collages: float = 0.2  # part that are photographs pasted together along drawn outlines


def segment_photos(
    recipe: TuneRecipe, photos: list[NDArray[np.uint8]], work: Path, progress: Any, processes: int = 1
) -> int:
    """Write views uint8 [N, 256, 256, 3] and their segmentations uint16 [N, 34, 64, 64] to `work`; return N."""
    order = np.random.default_rng(recipe.seed).permutation(len(photos))
    count = recipe.views
    views, labels = (work / f"{name}_{count}.npy" for name in ("views", "labels"))
    done = work / f"taught_{count}.txt"
    mode = "r+" if done.exists() else "w+"
    frames = np.lib.format.open_memmap(views, mode, np.uint8, (count, SIDE, SIDE, 3))
    taught = np.lib.format.open_memmap(labels, mode, np.uint16, (count, tiny_teacher.MEMBERS, CELLS, CELLS))
    if taught.shape[1] != tiny_teacher.MEMBERS:
        raise DiffSegError(
            f"{labels}: expected {tiny_teacher.MEMBERS} segmentations of each view, found {taught.shape[1]}: another "
            "version made it; remove the folder, or choose another output"
        )
    first = int(done.read_text()) if done.exists() else 0
    task = progress.add_task("segmentations", total=count, completed=first)
    jobs = ((recipe.seed, index, photos[order[index % len(photos)]]) for index in range(first, count))
    with get_context("spawn").Pool(processes) as pool:
        for index, (view, segmentations) in enumerate(pool.imap(_segment_view, jobs), first):
            frames[index], taught[index] = view, segmentations
            if index % 50 == 49 or index == count - 1:
                frames.flush()
                taught.flush()
                write_atomically(done, str(index + 1).encode())
            progress.update(task, completed=index + 1)
    return count


def _segment_view(job: tuple[int, int, NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """A view of a photograph and its segmentations, determined by (seed, index, photograph)."""
    seed, index, photo = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 7, index])
    view = tiny_data.photo_view(rng, photo, SIDE, whole=index % 2 == 0)
    if rng.random() < 0.5:
        view = _sharpened(rng, view)
    return view, tiny_teacher.teach(view)


def _sharpened(rng: np.random.Generator, view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sharpen and add grain to a view that was enlarged from a small photograph; uint8 of the same shape."""
    values = view.astype(np.float32)
    values += rng.uniform(0, 1) * (values - np.asarray(cv2.GaussianBlur(values, (0, 0), 1.5), np.float32))
    noisy = values + rng.normal(0, rng.uniform(0, 4), values.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


class Pictures:
    """Random training pictures with the labels of their cells, from photographs, drawn scenes and both."""

    def __init__(self, recipe: TuneRecipe, work: Path, first: int) -> None:
        """`first`: part of the random numbers' seed, so that a continued run draws other pictures."""
        self.recipe = recipe
        self.rng = np.random.default_rng([recipe.seed, 8, first])
        self.noise_scenes: deque[Scene] = deque(maxlen=300)
        self.views = np.load(work / f"views_{recipe.views}.npy", mmap_mode="r")
        self.labels = np.load(work / f"labels_{recipe.views}.npy", mmap_mode="r")

    def sample(self, tokens: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A picture uint8 [8·tokens, 8·tokens, 3] BGR and its target attention float32 [tokens², tokens²]."""
        picture, labels = self._picture()
        cells = 2 * tokens
        y, x = (int(v) for v in self.rng.integers(0, CELLS - cells + 1, 2))
        labels = labels[:, y : y + cells, x : x + cells]
        pixels = tiny_teacher.CELL
        picture = picture[y * pixels : (y + cells) * pixels, x * pixels : (x + cells) * pixels]
        picture = np.ascontiguousarray(picture)
        if self.rng.random() < 0.7:
            picture = tiny_data.jitter(self.rng, picture)
        return picture, tiny_teacher.target(labels, self.rng)

    def _picture(self) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        chance = self.rng.random()
        if chance < self.recipe.scenes:
            share = float(self.rng.choice(SHARES, p=CHANCES))
            scene = draw_scene(int(self.rng.integers(1 << 30)), (SIDE, SIDE), share=share, split="train")
            return scene.frame, scene.mask[None, CENTRES, CENTRES].repeat(4, axis=0)
        if chance >= 1 - self.recipe.noise_scenes:
            scene = self._noise_scene()
            return self._turned(scene.frame, scene.mask[None, CENTRES, CENTRES].repeat(4, axis=0))
        if chance >= self.recipe.scenes + self.recipe.collages:
            return self._photo()
        count = int(self.rng.integers(2, 4))
        outline = draw_scene(int(self.rng.integers(1 << 30)), (CELLS, CELLS), split="train").mask % count
        large = cv2.resize(outline.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        large = cv2.medianBlur(large, 7)
        small = large[CENTRES, CENTRES]
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        labels = np.zeros((tiny_teacher.MEMBERS, CELLS, CELLS), np.int64)
        for index in range(count):
            photo, its = self._photo()
            picture[large == index] = photo[large == index]
            labels = np.where(small == index, its.astype(np.int64) + index * CELLS**2, labels)
        return picture, labels

    def _noise_scene(self) -> Scene:
        """A noise scene. It is slow to draw, so each one is used about four times."""
        if len(self.noise_scenes) < 60 or self.rng.random() < 0.25:
            self.noise_scenes.append(draw_noise_scene(self.rng, SIDE))
        return self.noise_scenes[int(self.rng.integers(len(self.noise_scenes)))]

    def _photo(self) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        index = int(self.rng.integers(len(self.views)))
        return self._turned(np.array(self.views[index]), np.array(self.labels[index]))

    def _turned(
        self, view: NDArray[np.uint8], labels: NDArray[np.integer]
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """A view and its labels, mirrored and transposed at random."""
        for chance, mirror in ((0.5, (1, 2)), (0.25, (0, 1))):
            if self.rng.random() < chance:
                view, labels = np.flip(view, mirror[0]), np.flip(labels, mirror[1])
        if self.rng.random() < 0.25:
            view, labels = view.transpose(1, 0, 2), labels.transpose(0, 2, 1)
        return np.ascontiguousarray(view), np.ascontiguousarray(labels)
