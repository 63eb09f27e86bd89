"""Textures of drawn scenes: brightness patterns of mean 0, as functions of a piece's own coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAMILIES = ("plain", "noise", "oriented", "grating", "checks", "dots", "waves", "bricks")

_TILE = 128  # side of the noise tiles, pixels


@dataclass(frozen=True, slots=True)
class Texture:
    """One pattern: `period` in pixels, `angle` in radians, `direction`: its strength in B, G and R."""

    family: str
    seed: int
    period: float
    angle: float
    direction: tuple[float, float, float]

    def __call__(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        """The pattern at the points (x, y), float32 [k] each: float32 [k], about -1…1."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        u, v = (c * x + s * y) / self.period, (c * y - s * x) / self.period
        if self.family in ("noise", "oriented"):
            return _sample(_noise_tile(self.seed, self.period, self.family == "oriented", self.angle), x, y)
        if self.family == "plain":
            return 0.15 * _sample(_noise_tile(self.seed, 2.0, False, 0.0), x, y)
        if self.family == "grating":
            wave = np.sin(2 * np.pi * u)
            return np.asarray(np.sign(wave) * np.abs(wave) ** (0.3 + self.seed % 3 * 0.4), np.float32)
        if self.family == "checks":
            return np.asarray(np.sign(np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)), np.float32)
        if self.family == "dots":
            distance = np.hypot(u - np.rint(u), v - np.rint(v))
            return np.asarray(1.6 * np.clip((0.36 - distance) * 8, 0, 1) - 0.6, np.float32)
        if self.family == "waves":
            return np.asarray(np.sin(2 * np.pi * (u + 0.35 * np.sin(2 * np.pi * v * 0.6))), np.float32)
        row = np.floor(v * 2)
        seam = np.minimum(np.abs(u + row / 2 - np.rint(u + row / 2)), np.abs(v * 2 - np.rint(v * 2)) * 0.5)
        return np.asarray(np.clip(seam * 14 - 1.2, -1, 0.5), np.float32)


def random_texture(rng: np.random.Generator, family: str | None = None) -> Texture:
    """A texture of random scale, direction and contrast; `family` None: of a random family."""
    chosen = family or FAMILIES[int(rng.integers(len(FAMILIES)))]
    period = float(np.exp(rng.uniform(np.log(4.0), np.log(22.0))))
    strength = float(rng.uniform(14, 48))
    tint = 1 + rng.normal(0, 0.45 if rng.random() < 0.3 else 0.08, 3)
    direction = (float(strength * tint[0]), float(strength * tint[1]), float(strength * tint[2]))
    return Texture(chosen, int(rng.integers(2**31)), period, float(rng.uniform(0, np.pi)), direction)


@lru_cache(maxsize=64)
def _noise_tile(seed: int, period: float, oriented: bool, angle: float) -> NDArray[np.float32]:
    """Periodic noise float32 [128, 128] of deviation ½: low-pass, or a band of frequencies along one direction."""
    rng = np.random.default_rng(seed)
    fy, fx = np.meshgrid(np.fft.fftfreq(_TILE), np.fft.rfftfreq(_TILE), indexing="ij")
    radius = np.hypot(fx, fy)
    centre = 1 / period
    if oriented:
        along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
        gain = np.exp(
            -((np.abs(along) - centre) ** 2) / (2 * (0.3 * centre) ** 2) - across**2 / (2 * (0.25 * centre) ** 2)
        )
    elif seed % 2:
        gain = np.exp(-((radius - centre) ** 2) / (2 * (0.35 * centre) ** 2))
    else:
        gain = 1 / (1 + (radius / centre) ** 2)
    gain[0, 0] = 0
    spectrum = np.fft.rfft2(rng.normal(0, 1, (_TILE, _TILE))) * gain
    tile = np.fft.irfft2(spectrum, (_TILE, _TILE))
    return np.asarray(tile / (2 * tile.std() + 1e-9), np.float32)


def _sample(tile: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tile at (x, y), bilinearly interpolated and repeated in both directions: float32 [k]."""
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - x0, y - y0
    x1, y1 = (x0 + 1) % _TILE, (y0 + 1) % _TILE
    x0, y0 = x0 % _TILE, y0 % _TILE
    top = tile[y0, x0] * (1 - fx) + tile[y0, x1] * fx
    low = tile[y1, x0] * (1 - fx) + tile[y1, x1] * fx
    return np.asarray(top * (1 - fy) + low * fy, np.float32)
