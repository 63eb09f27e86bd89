"""Drawn scenes with exact masks whose pieces are filled with coloured 1/f noise, like foliage, water and clouds.

The spectra of natural pictures fall off as a power of the frequency (Field, JOSA A 1987). The photographs for training
show shops and garments, which have few such textures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from tools.scenes.draw import Scene, draw_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray


def noise_field(rng: np.random.Generator, side: int, power: float, stretch: float, low: float) -> NDArray[np.float32]:
    """Noise of mean 0 and deviation 1, float32 [side, side], whose amplitude falls as frequency^-`power`.

    `stretch`: length of its grains over their width, in a random direction. `low`: frequencies below this, in cycles
    per pixel, are left out.
    """
    angle = rng.uniform(0, np.pi)
    y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    frequency = np.hypot(along * stretch, across)
    amplitude = np.where(frequency < low, 0, np.maximum(frequency, 1 / side) ** -power)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * amplitude, (side, side))
    return ((field - field.mean()) / (field.std() + 1e-6)).astype(np.float32)


def draw_noise_scene(rng: np.random.Generator, side: int = 256) -> Scene:
    """A random scene of `side` × `side` pixels; half of them have ragged outlines."""
    mask = draw_scene(int(rng.integers(1 << 30)), (side, side), split="train").mask
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    if rng.random() < 0.5:
        shift = rng.uniform(1, 6)
        maps: list[NDArray[np.float32]] = []
        for place in (columns, rows):
            move = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), rng.uniform(2, 6))
            maps.append(np.asarray(place + shift * move / move.std(), np.float32))
        moved = cv2.remap(mask.astype(np.int16), maps[0], maps[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
        mask = np.asarray(moved, np.int32)
    frame = np.zeros((side, side, 3), np.float32)
    common = rng.uniform(40, 210, 3)
    light = np.stack([rows, columns], axis=-1) * (2 / side) - 1
    for index in np.unique(mask):
        alike = rng.random() < 0.25  # close to one colour that several pieces share
        colour = common + 12 * rng.normal(0, 1, 3) if alike else _colour(rng)
        values = np.clip(colour, 8, 247) + _pattern(rng, side)
        values += (light @ rng.normal(0, 25, 2) * rng.choice([0, 0.5, 1]))[..., None]
        frame[mask == index] = values[mask == index]
    if rng.random() < 0.5:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.4, 1.2)), np.float32)
    noisy = frame + rng.standard_normal(frame.shape) * rng.uniform(0, 5)
    return Scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(20, 225) + rng.normal(0, 1, 3) * rng.choice([5, 25, 60])


def _pattern(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """The texture that is added to a colour, [side, side, 3].

    It is 0 in a fifth of the cases, otherwise noise in brightness and sometimes in hue.
    """
    if rng.random() < 0.2:
        return np.zeros((side, side, 3))
    strength = np.exp(rng.uniform(np.log(3), np.log(60)))
    stretch = np.exp(rng.uniform(0, 1.4)) if rng.random() < 0.5 else 1.0
    grain = noise_field(rng, side, rng.uniform(0.3, 1.8), stretch, rng.choice([0, 0, 0.01, 0.03, 0.06]))
    if rng.random() < 0.4:
        grain = np.tanh(grain * rng.uniform(0.5, 1.5))  # patches instead of grains
    values = strength * grain[..., None] * (1 + 0.25 * rng.normal(0, 1, 3))
    if rng.random() < 0.4:
        hue = noise_field(rng, side, rng.uniform(0.5, 1.8), 1.0, 0.01)
        values = values + 0.4 * strength * hue[..., None] * rng.normal(0, 1, 3)
    return values
