"""The merge core's C library under sanitizers: its tests, and a fuzzer over configurations and frames."""
