"""The CUDA driver, and arrays on a device."""
