"""What Triton's Python backend runs: a Segmenter on the frames of the requests that Triton gives it together.

The interface is Triton's: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import ctypes
import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError, as_one_line
from runtime.options import label_type, thresholds_of
from runtime.refine.registry import DEFAULT_PIECES
from runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from runtime.result import Result

    Row = tuple[float, ...] | None

LABELS = {"UINT8": np.uint8, "INT32": np.int32}
MOST_VARIANTS = 64  # thresholds for which a Segmenter is kept


@dataclass(slots=True)
class Asked:
    """One request: its frames uint8 [H, W, 3], thresholds for each (None: the model's), and what has become of them."""

    frames: NDArray[np.uint8] | Sequence[Any] = ()
    rows: Sequence[Row] = ()
    results: dict[int, Result] = field(default_factory=dict)
    error: DiffSegError | None = None


class Model:
    """The base of `TritonPythonModel`, which the file `model.py` of a model repository defines.

    Attributes:
        triton: the module triton_python_backend_utils, which only Triton has.
    """

    triton: Any

    def initialize(self, given: Mapping[str, str]) -> None:
        """Open the engine. `given`: Triton's arguments, texts; `model_config` has what `diffseg triton` wrote."""
        parameters = json.loads(given["model_config"])["parameters"]
        told = {name: entry["string_value"] for name, entry in parameters.items()}
        on_gpu = given["model_instance_kind"] == "GPU"
        try:
            self._segmenter = Segmenter.open(
                Path(given["model_repository"]) / given["model_version"] / told["engine"],
                f"cuda:{given['model_instance_device_id']}" if on_gpu else "cpu",
                backend=told.get("backend"),
                thresholds=thresholds_of(told.get("threshold")),
                refine=told.get("refine", "none"),
                min_area=float(told.get("min_area", 0)),
                pieces=told.get("pieces", DEFAULT_PIECES),
                options={"threads": int(told["threads"]) if "threads" in told else None},
            )
        except (DiffSegError, ValueError) as error:
            raise self.triton.TritonModelException(str(error)) from None
        self._type = LABELS[label_type(self._segmenter.config, self._segmenter.stages.refinement)]
        self._variants: OrderedDict[Row, Segmenter] = OrderedDict()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests: each with its labels, or with an error of its own."""
        asked = [self._read(request) for request in requests]
        rows = dict.fromkeys(row for one in asked for row in one.rows)
        for row in rows:
            self._segment(asked, row)
        return [self._answer(one) for one in asked]

    def finalize(self) -> None:
        """Let go of the engine."""
        self._variants.clear()
        self._segmenter.close()

    def _read(self, request: Any) -> Asked:
        frames, thresholds = (self._input(request, name) for name in ("frame", "thresholds"))
        if thresholds is None:
            return Asked(frames, [None] * len(frames))
        return Asked(frames, [tuple(row) for row in thresholds.tolist()])

    def _input(self, request: Any, name: str) -> Any:
        """A tensor of a request; None where it is left out.

        By DLPack, as the outputs: with NumPy 2 Triton's own conversion, to 2.52 at least, gives other values.
        """
        tensor = self.triton.get_input_tensor_by_name(request, name)
        return None if tensor is None else np.from_dlpack(tensor)

    def _segment(self, asked: Sequence[Asked], row: Row) -> None:
        """Segment all frames with these thresholds, of whatever request."""
        places = [(one, index) for one in asked for index, own in enumerate(one.rows) if own == row]
        try:
            segmenter = self._variant(row)
            found = segmenter.map((one.frames[index] for one, index in places), errors="give")
            for (one, index), result in zip(places, found, strict=True):
                if isinstance(result, DiffSegError):
                    one.error = result
                else:
                    one.results[index] = result
        except Exception as error:
            for one, _ in places:
                one.error = one.error or as_one_line(error, "this request")

    def _variant(self, row: Row) -> Segmenter:
        """A Segmenter with these thresholds on the same engine. Raises DiffSegError where they are invalid."""
        base = self._segmenter
        if row is None:
            return base
        if row not in self._variants:
            try:
                config = replace(base.config, thresholds=row)
            except ValueError as error:
                raise DiffSegError(str(error)) from None
            self._variants[row] = Segmenter(base.engine, config, refinement=base.stages.refinement)
            if len(self._variants) > MOST_VARIANTS:
                self._variants.popitem(last=False)
        self._variants.move_to_end(row)
        return self._variants[row]

    def _answer(self, one: Asked) -> Any:
        if one.error is not None:
            return self.triton.InferenceResponse(error=self.triton.TritonError(" ".join(str(one.error).split())))
        results = [one.results[index] for index in range(len(one.frames))]
        labels = np.stack([result.labels for result in results]).astype(self._type)
        segments = np.array([[result.count] for result in results], np.int32)
        tensors = [self._output(name, array) for name, array in (("labels", labels), ("segments", segments))]
        return self.triton.InferenceResponse(output_tensors=tensors)

    def _output(self, name: str, array: NDArray[Any]) -> Any:
        capsule = array.__dlpack__()
        # Triton marks what it has taken by a word of its own, of which NumPy's destructor would complain each time.
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return self.triton.Tensor.from_dlpack(name, capsule)
