"""A C header with what a program must know of a labels engine: names, sizes, types and default thresholds."""

from __future__ import annotations

import re

from runtime.engine.spec import EngineSpec


def header(spec: EngineSpec, name: str) -> str:
    """The text of the header, for C99 and C++. `name`: of the engine file, `tiny-labels.onnx`; it makes the prefix."""
    prefix = re.sub(r"\W", "_", name.removesuffix(".onnx"), flags=re.ASCII)
    prefix = f"engine_{prefix}" if prefix[:1].isdigit() else prefix
    layout = spec.frame_input
    numbers = "uint8_t" if layout.type == "uint8" else "float"
    order = "3 planes: red, green, blue" if layout.planar else "a pixel is blue, green, red, as OpenCV has it"
    sides = (3, spec.height, spec.width) if layout.planar else (spec.height, spec.width, 3)
    labels = "uint8_t" if spec.grid**2 <= 256 else "int32_t"
    frame = "".join(f"[{side}]" for side in sides)
    batch = "any number of frames" if spec.batch is None else f"{spec.batch} frame{'s'[: spec.batch > 1]}"
    thresholds = ", ".join(f"{threshold!r}f" for threshold in spec.thresholds)
    return f"""\
/* {name}: what a program that runs it must know. Written by `diffseg engine labels`.

   Resize a picture to {prefix}_height x {prefix}_width: averaged (OpenCV: INTER_AREA) along an axis that
   shrinks, bilinear (INTER_LINEAR) along one that grows. Run the engine on {batch}. Resize the labels to the
   picture's size by nearest neighbours (INTER_NEAREST_EXACT). A proposal may win no pixel. */
#ifndef DIFFSEG_{prefix.upper()}_H
#define DIFFSEG_{prefix.upper()}_H

enum {{
    {prefix}_height = {spec.height},
    {prefix}_width = {spec.width},
    {prefix}_batch = {spec.batch or 0}, /* frames per call; 0: any number */
    {prefix}_iterations = {len(spec.thresholds)}
}};

/* Input: {numbers} [batch]{frame}, 0 to {layout.brightest}, not normalised; {order}. */
#define {prefix}_frame "frame"
/* Input: float [{len(spec.thresholds)}], KL thresholds, one per iteration; higher merges more. */
#define {prefix}_thresholds "thresholds"
/* Output: {labels} [batch][{spec.height}][{spec.width}], the proposal that each pixel belongs to, from 0. */
#define {prefix}_labels "labels"
/* Output: int32_t [batch], the number of proposals. */
#define {prefix}_segments "segments"

static const float {prefix}_default_thresholds[{len(spec.thresholds)}] = {{{thresholds}}};

#endif
"""
