"""ONNX engines through OpenVINO, on the CPU: also bfloat16 graphs, which ONNX Runtime cannot run there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino as ov

from runtime.engine import Engine
from runtime.errors import DiffSegError
from runtime.sidecar import METADATA_KEY, read_spec

if TYPE_CHECKING:
    from pathlib import Path


class OpenVinoEngine(Engine):
    """An ONNX engine compiled by OpenVINO. Clones share the weights and have an inference request each."""

    def __init__(self, path: Path, device: str) -> None:
        if device not in ("auto", "cpu"):
            raise DiffSegError(f"the openvino backend runs on the CPU, found device {device!r}; use --device cpu")
        core = ov.Core()
        try:
            model = core.read_model(path)
        except Exception as error:
            raise DiffSegError(
                f"{path} is not an ONNX file that OpenVINO {ov.__version__.split('-')[0]} can load "
                f"({_first_line(error)}); export the engine again with 'python -m export'"
            ) from None
        self.spec = read_spec(path, _metadata(model), [output.get_any_name() for output in model.outputs])
        self.device = "cpu"
        # float32 engines stay exact; in the others OpenVINO may use the matrix units the CPU has.
        options = {"INFERENCE_PRECISION_HINT": "f32"} if self.spec.precision == "fp32" else {}
        try:
            self.compiled = core.compile_model(model, "CPU", options)
        except Exception as error:
            raise DiffSegError(f"OpenVINO cannot compile {path}: {_first_line(error)}") from None
        self._request = self.compiled.create_infer_request()

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


def _metadata(model: ov.Model) -> str | None:
    """The entry that `python -m export` left in the ONNX file's metadata."""
    path = ["framework", METADATA_KEY]
    return model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
