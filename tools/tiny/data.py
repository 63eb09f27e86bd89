"""Training data of the tiny model: photographs and drawn scenes, as crops for the autoencoder and as latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from tools.scenes.draw import draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# Sides of the stored pictures, in pixels: whole views as the engine gets them, and views for small crops.
SIDES = {"photos": (256, 192), "scenes": (256, 160)}


def load_photos(folder: Path, limit: int | None = None) -> list[NDArray[np.uint8]]:
    """Every picture in `folder` and its subfolders, in the order of names: uint8 [h, w, 3] BGR each.

    Raises DiffSegError when there is no picture.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:limit]
    pictures = [picture for path in paths if (picture := cv2.imread(str(path))) is not None]
    if not pictures:
        raise DiffSegError(f"--photos: expected a folder with .jpg or .png files, found none in {folder}; name another")
    return [np.asarray(picture, np.uint8) for picture in pictures]


def draw_scenes(
    count: int, side: int, first_seed: int, cache: Path, shares: tuple[float, ...] = (0.5, 0.5, 0.0)
) -> NDArray[np.uint8]:
    """Training scenes uint8 [count, side, side, 3] BGR, drawn once and kept in `cache`; masks are dropped.

    `shares`: parts of the neighbours that have one mean colour, taken in turn. In a third of the scenes no neighbours
    do: colour then separates regions, as in most photographs.
    """
    path = cache / f"scenes_{side}_{count}_{first_seed}.npy"
    if path.exists():
        return np.asarray(np.load(path, mmap_mode="r"))
    scenes = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        share = shares[index % len(shares)]
        scenes[index] = draw_scene(first_seed + index, (side, side), share=share, split="train").frame
    cache.mkdir(parents=True, exist_ok=True)
    with (path.with_suffix(".new")).open("wb") as file:
        np.save(file, scenes)
    path.with_suffix(".new").rename(path)
    return scenes


def photo_view(rng: np.random.Generator, photo: NDArray[np.uint8], side: int, whole: bool) -> NDArray[np.uint8]:
    """A square view uint8 [side, side, 3]: the `whole` photograph, squeezed, or a random part; flipped at random."""
    height, width = photo.shape[:2]
    if not whole:
        part = int(min(height, width) * rng.uniform(0.7, 1.0))
        y, x = int(rng.integers(0, height - part + 1)), int(rng.integers(0, width - part + 1))
        photo = photo[y : y + part, x : x + part]
    view = cv2.resize(
        photo, (side, side), interpolation=cv2.INTER_AREA if side < min(photo.shape[:2]) else cv2.INTER_LINEAR
    )
    if rng.random() < 0.5:
        view = view[:, ::-1]
    return jitter(rng, np.ascontiguousarray(view)) if rng.random() < 0.5 else np.asarray(view, np.uint8)


def jitter(rng: np.random.Generator, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture in random brightness, contrast and white balance; uint8 of the same shape."""
    gain = float(rng.uniform(0.7, 1.3)) * rng.uniform(0.85, 1.15, 3)
    table = (np.arange(256)[:, None] / 255) ** float(rng.uniform(0.75, 1.35)) * gain
    table = np.clip(np.rint(table * 255), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table[None]), np.uint8)


def crops(
    rng: np.random.Generator,
    photos: list[NDArray[np.uint8]],
    scenes: NDArray[np.uint8],
    side: int,
    batch: int,
) -> NDArray[np.uint8]:
    """A batch for the autoencoder: uint8 [batch, side, side, 3], half photographs, half scenes."""
    pictures = []
    for index in range(batch):
        source = scenes if index % 2 else photos
        picture = source[int(rng.integers(len(source)))]
        part = min(int(side * rng.uniform(0.75, 1.33)), *picture.shape[:2])
        y = int(rng.integers(0, picture.shape[0] - part + 1))
        x = int(rng.integers(0, picture.shape[1] - part + 1))
        view = cv2.resize(picture[y : y + part, x : x + part], (side, side), interpolation=cv2.INTER_AREA)
        pictures.append(jitter(rng, np.ascontiguousarray(view[:, :: int(rng.choice([-1, 1]))])))
    return np.stack(pictures)


def normalise(pictures: NDArray[np.uint8]) -> Any:
    """uint8 [B, H, W, 3] BGR → float32 tensor [B, 3, H, W] RGB in -1…1, channels last in memory."""
    import torch

    rgb = np.ascontiguousarray(pictures[..., ::-1])
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def view_sets(
    photos: list[NDArray[np.uint8]], cache: Path, scene_counts: tuple[int, int], texture_scenes: int, seed: int
) -> dict[str, tuple[int, Callable[[int], NDArray[np.uint8]]]]:
    """The sets of pictures to encode: name → (number of pictures, function from index to picture)."""
    sets: dict[str, tuple[int, Callable[[int], NDArray[np.uint8]]]] = {}
    for kind, side in enumerate(SIDES["photos"]):

        def view(index: int, kind: int = kind, side: int = side) -> NDArray[np.uint8]:
            rng = np.random.default_rng([seed, kind, index])
            return photo_view(rng, photos[index % len(photos)], side, whole=kind == 0)

        sets[f"photos_{side}"] = (len(photos), view)
    large, small = SIDES["scenes"]
    drawn = {
        "scenes_256": draw_scenes(scene_counts[0], large, 0, cache),
        # One mean colour throughout: only textures separate the regions.
        "scenes_256_texture": draw_scenes(texture_scenes, large, 2_000_000, cache, (1.0,)),
        "scenes_160": draw_scenes(scene_counts[1], small, 1_000_000, cache),
    }
    for name, scenes in drawn.items():

        def scene(index: int, scenes: NDArray[np.uint8] = scenes) -> NDArray[np.uint8]:
            rng = np.random.default_rng([seed, 9, index])
            picture = np.asarray(scenes[index])
            return jitter(rng, picture) if rng.random() < 0.3 else picture

        sets[name] = (len(scenes), scene)
    return sets


def latent_batches(
    rng: np.random.Generator, latents: dict[str, NDArray[np.float16]], side: int, batch: int
) -> Iterator[NDArray[np.float32]]:
    """Endless batches float32 [batch, C, side, side]: random crops, half of them from scenes.

    Sets whose latents are smaller than `side` are left out.
    """
    kinds = [
        [values for name, values in latents.items() if name.startswith(kind) and values.shape[-1] >= side]
        for kind in ("photos", "scenes")
    ]
    while True:
        pieces = []
        for index in range(batch):
            sets = kinds[index % 2]
            # The last set that is large enough was made for this size, so that most crops come from it.
            values = sets[int(rng.integers(len(sets)))] if rng.random() < 0.5 else sets[-1]
            item = values[int(rng.integers(len(values)))]
            y, x = (int(v) for v in rng.integers(0, item.shape[-1] - side + 1, 2))
            pieces.append(item[:, y : y + side, x : x + side])
        yield np.stack(pieces).astype(np.float32)
