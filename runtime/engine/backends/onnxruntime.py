"""ONNX engines through ONNX Runtime, on the CPU or on CUDA."""

import contextlib
import io
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.engine.base import Engine, check_count
from runtime.engine.spec import METADATA_KEY, read_spec
from runtime.errors import DiffSegError
from runtime.gpu.arrays import DeviceArray, device_array


class OnnxRuntimeEngine(Engine):
    """An ONNX engine in an ONNX Runtime session, which clones share: it may be run from several threads at once."""

    def __init__(self, path: Path, device: str, *, threads: int | None = None) -> None:
        """Load an engine. `threads`: of the CPU; None for all.

        Raises DiffSegError when the file is not an engine, or when the device is missing.
        """
        # Fatal errors only: all others reach the user as exceptions, and must not be logged as well.
        ort.set_default_logger_severity(4)
        providers, self.device = _providers(device)
        # cuDNN and cuBLAS may be in pip packages, where no loader looks. What this call prints helps nobody.
        if self.device != "cpu" and hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            check_count("threads", threads)
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise DiffSegError(
                    f"ONNX Runtime {ort.__version__} has no {device} kernels for {path.name}, nor for any bf16 engine; "
                    "use --backend openvino (pip install 'diffseg[openvino]')"
                ) from None
            raise DiffSegError(
                f"{path} is not an ONNX file that ONNX Runtime {ort.__version__} can load "
                f"({str(error).strip().splitlines()[0][:200]}); export the engine again with 'python -m export'"
            ) from None
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        # When ONNX Runtime cannot start a provider it silently falls back to the CPU.
        if wanted not in self.session.get_providers() and device == "auto":
            self.device = "cpu"
        elif wanted not in self.session.get_providers():
            raise DiffSegError(
                f"device {device!r} needs ONNX Runtime's {wanted}, which did not start; found "
                f"{', '.join(self.session.get_providers())}; check the driver, CUDA and cuDNN "
                "(pip install 'diffseg[gpu]' brings both), or use --device cpu"
            )
        self.on_device = self.device != "cpu"
        try:
            text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        except UnicodeDecodeError as error:
            raise DiffSegError(f"{path} is damaged: its metadata is not text ({error}); export it again") from None
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.spec = read_spec(path, text, self._outputs)

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self.session.run(self._outputs, inputs)
        except Exception as error:
            raise DiffSegError(f"ONNX Runtime failed: {str(error).strip().splitlines()[0][:300]}") from None

    def _infer_on_device(self, inputs: dict[str, np.ndarray]) -> list[DeviceArray]:
        """Outputs stay on the GPU, where ONNX Runtime allocates them. They are complete when this returns."""
        number = int(self.device.partition(":")[2])
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name, "cuda", number)
        try:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise DiffSegError(f"ONNX Runtime failed: {str(error).strip().splitlines()[0][:300]}") from None
        arrays = [device_array(value, name) for name, value in zip(self._outputs, binding.get_outputs(), strict=True)]
        if not all(arrays):
            raise DiffSegError(f"ONNX Runtime left its outputs on the host, asked for {self.device}; use --device cpu")
        return [array for array in arrays if array is not None]

    def clone(self) -> "OnnxRuntimeEngine":
        other = object.__new__(OnnxRuntimeEngine)
        other.__dict__.update(self.__dict__)
        return other


def _providers(device: str) -> tuple[list[Any], str]:
    """ONNX Runtime's providers for a device, and the device's name, with 'auto' resolved."""
    available = ort.get_available_providers()
    gpu = "CUDAExecutionProvider" in available
    if device == "cpu" or (device == "auto" and not gpu):
        return ["CPUExecutionProvider"], "cpu"
    if not gpu:
        advice = "pip uninstall onnxruntime && pip install 'diffseg[gpu]'"
        if platform.machine() == "aarch64":
            advice = (
                "on ARM PyPI has none with it: build a plan with the system's TensorRT ('python -m export plan "
                "ENGINE.onnx --flavour tensorrt'), or install NVIDIA's onnxruntime-gpu for JetPack"
            )
        raise DiffSegError(
            f"device {device!r} asked for, but this ONNX Runtime has no CUDA (it has {', '.join(available)}); "
            f"{advice}, or use --device cpu"
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}), "CPUExecutionProvider"], f"cuda:{index}"
