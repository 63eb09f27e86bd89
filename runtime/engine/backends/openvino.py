"""ONNX engines through OpenVINO, on the CPU: also bfloat16 engines, and float32 engines in bfloat16 arithmetic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset12 as opset

from runtime.engine.backends.openvino_cache import compile_or_load, compiled_folder
from runtime.engine.base import Engine, check_count
from runtime.engine.spec import METADATA_KEY, EngineSpec, read_spec
from runtime.errors import DiffSegError

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """An ONNX engine compiled by OpenVINO. Clones share the weights; each has its own inference request."""

    def __init__(
        self,
        path: Path,
        device: str,
        *,
        threads: int | None = None,
        streams: int = 1,
        precision: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        """Compile an engine, or load it from the cache.

        `threads`: of the CPU; None for all. `streams`: how many clones run at the same time, each with its share of
        the threads. `precision`: fp32 keeps a float32 graph exact, bf16 multiplies matrices in bfloat16; None takes
        bf16 if the CPU has units for it. `cache`: folder for compiled models up to 1 GB; None for the one in the
        user's cache, "" for no cache. Weights are mapped from the file, not read.
        Raises DiffSegError when the file is not an engine, the CPU lacks the precision, or OpenVINO cannot compile it.
        """
        if device not in ("auto", "cpu"):
            raise DiffSegError(f"the openvino backend runs on the CPU, found device {device!r}; use --device cpu")
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": True})
        options = _options(threads, streams, precision)
        if not isinstance(cache, str | Path | None):
            raise DiffSegError(
                f'cache: expected a folder, or "" for no cache, found {cache!r}; leave it out for the user\'s cache'
            )
        try:
            model = core.read_model(path)
        except Exception as error:
            raise DiffSegError(
                f"{path} is not an ONNX file that OpenVINO {ov.__version__.split('-')[0]} can load "
                f"({_first_line(error)}); export the engine again with 'python -m export'"
            ) from None
        self.spec = read_spec(path, _metadata(model), [output.get_any_name() for output in model.outputs])
        self.device = "cpu"
        if options["INFERENCE_PRECISION_HINT"] == "bf16":
            _keep_maps_in_bfloat16(model, self.spec)
        folder = compiled_folder() if cache is None else Path(cache).expanduser() if cache else None
        _sum_groups_in_order(model)
        try:
            self.compiled = compile_or_load(core, model, path, options, folder, _weights(model))
        except Exception as error:
            raise DiffSegError(f"OpenVINO cannot compile {path}: {_first_line(error)}") from None
        self._request = self.compiled.create_infer_request()

    @property
    def precision(self) -> str:
        """The precision of matrix products: fp32 or bf16."""
        hint = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return next((name for name, value in HINTS.items() if value == hint), hint)

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            self._request.infer(inputs)
        except Exception as error:
            raise DiffSegError(f"OpenVINO failed: {_first_line(error)}") from None
        return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def clone(self) -> OpenVinoEngine:
        other = object.__new__(OpenVinoEngine)
        other.__dict__.update(self.__dict__, _request=self.compiled.create_infer_request())
        return other


def has_bfloat16() -> bool:
    """Whether the CPU has units that multiply bfloat16. OpenVINO uses them for float32 engines, too."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _options(threads: int | None, streams: int, precision: str | None) -> dict[str, Any]:
    for name, value in (("threads", threads), ("streams", streams)):
        if value is not None:
            check_count(name, value)
    if precision not in (None, *HINTS):
        raise DiffSegError(f"precision: expected {' or '.join(HINTS)}, found {precision!r}; leave it out for the best")
    able = has_bfloat16()
    if precision == "bf16" and not able:
        raise DiffSegError(
            "precision bf16: expected a CPU with bfloat16 units (AMX, AVX-512 BF16), found none; use fp32"
        )
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision or ("bf16" if able else "fp32")],
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _keep_maps_in_bfloat16(model: ov.Model, spec: EngineSpec) -> None:
    """Let attention's softmax and the means of its maps read and write bfloat16; their arithmetic stays as it is.

    OpenVINO keeps everything after the last matrix product in float32. In an engine that is every softmax, since its
    map is an output, and the conversions around it take a quarter of a 64×64 layer's time. OpenVINO's search for the
    last matrix product also ends at an interpolation. So one is added behind each map, from its size to the same
    size: it changes no value and costs a copy of the mean map.
    """
    names = {level.output for level in spec.levels}
    for op in model.get_ordered_ops():
        for output in op.outputs():
            if names & output.get_names() and output.get_partial_shape()[1:].is_static:
                sizes, axes = (
                    opset.constant(np.array(values, np.int64))
                    for values in (output.get_partial_shape()[1:].to_shape(), (1, 2))
                )
                followers = output.get_target_inputs()
                same = opset.interpolate(output, sizes, "nearest", "sizes", axes=axes)
                for follower in followers:
                    follower.replace_source_output(same.output(0))


def _sum_groups_in_order(model: ov.Model) -> None:
    """Make each group of a GroupNormalization one channel, so that results do not depend on the number of threads.

    OpenVINO adds up the channels of a group in several threads, whose number decides how the sum is rounded. In
    bfloat16 that grows to 2 % of an attention map, and a segment may appear or vanish. One channel is summed by one
    thread. It takes 1 % more of the embedded engine's time. Everything else was found to be the same for any number of
    threads.
    """
    for op in model.get_ordered_ops():
        shape = op.get_output_partial_shape(0)
        if op.get_type_name() != "GroupNormalization" or shape.rank.get_length() != 4 or not shape[1:].is_static:
            continue
        groups, epsilon = (op.get_attributes()[name] for name in ("num_groups", "epsilon"))
        channels, height, width = shape[1:].to_shape()
        if channels == groups:
            continue
        data, scale, bias = (op.input_value(index) for index in range(3))
        joined = opset.reshape(data, np.array([0, groups, channels // groups * height, width]), special_zero=True)
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        type_ = op.get_output_element_type(0)
        unit = (opset.convert(opset.constant(values), type_.get_type_name()) for values in (ones, zeros))
        normal = opset.group_normalization(joined, *unit, groups, epsilon)
        apart = opset.reshape(normal, np.array([0, channels, height, width]), special_zero=True)
        per_channel = np.array([1, channels, 1, 1])
        scaled = opset.multiply(apart, opset.reshape(scale, per_channel, special_zero=False))
        shifted = opset.add(scaled, opset.reshape(bias, per_channel, special_zero=False))
        op.output(0).replace(shifted.output(0))


def _weights(model: ov.Model) -> int:
    """Bytes of the constants in a graph."""
    constants = [op.output(0) for op in model.get_ops() if op.get_type_name() == "Constant"]
    return sum(math.prod(value.get_shape()) * value.get_element_type().size for value in constants)


def _metadata(model: ov.Model) -> str | None:
    """The entry of `python -m export` in the ONNX file's metadata; None without one."""
    path = ["framework", METADATA_KEY]
    return model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
