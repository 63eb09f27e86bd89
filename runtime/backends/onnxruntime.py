"""ONNX engines through ONNX Runtime, on the CPU or on CUDA."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.engine import Engine
from runtime.errors import DiffSegError
from runtime.sidecar import METADATA_KEY, read_spec


class OnnxRuntimeEngine(Engine):
    """An ONNX engine in an ONNX Runtime session. Sessions may be run from several threads at once."""

    def __init__(self, path: Path, device: str) -> None:
        # Fatal only: what goes wrong reaches the user as an exception, not as a library's log line.
        ort.set_default_logger_severity(4)
        providers, self.device = _providers(device)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            self.session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise DiffSegError(
                    f"ONNX Runtime {ort.__version__} has no {device} kernels for {path.name}, as for all bf16 engines; "
                    "use --backend openvino (pip install 'diffseg[openvino]')"
                ) from None
            raise DiffSegError(
                f"{path} is not an ONNX file that ONNX Runtime {ort.__version__} can load "
                f"({str(error).strip().splitlines()[0][:200]}); export the engine again with 'python -m export'"
            ) from None
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        # Asked for a provider it cannot start, ONNX Runtime silently falls back to the CPU.
        if wanted not in self.session.get_providers() and device == "auto":
            self.device = "cpu"
        elif wanted not in self.session.get_providers():
            raise DiffSegError(
                f"device {device!r} needs ONNX Runtime's {wanted}, which did not start; found "
                f"{', '.join(self.session.get_providers())}; check the driver, CUDA and cuDNN, or use --device cpu"
            )
        try:
            text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        except UnicodeDecodeError as error:
            raise DiffSegError(f"{path} is damaged: its metadata is no text ({error}); export it again") from None
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.spec = read_spec(path, text, self._outputs)

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self.session.run(self._outputs, inputs)
        except Exception as error:
            raise DiffSegError(f"ONNX Runtime failed: {str(error).strip().splitlines()[0][:300]}") from None

    def clone(self) -> "OnnxRuntimeEngine":
        other = object.__new__(OnnxRuntimeEngine)
        other.__dict__.update(self.__dict__)
        return other


def _providers(device: str) -> tuple[list[Any], str]:
    """ONNX Runtime's providers for a device, and the device's name once 'auto' is resolved."""
    available = ort.get_available_providers()
    gpu = "CUDAExecutionProvider" in available
    if device == "cpu" or (device == "auto" and not gpu):
        return ["CPUExecutionProvider"], "cpu"
    if not gpu:
        raise DiffSegError(
            f"device {device!r} asked for, but this ONNX Runtime has no CUDA (it has {', '.join(available)}); "
            "pip uninstall onnxruntime && pip install 'diffseg[gpu]', or use --device cpu"
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"], f"cuda:{index}"
