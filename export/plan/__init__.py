"""TensorRT plans, built from ONNX engines."""
