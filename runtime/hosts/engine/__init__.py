"""Engines for programs that are not ours: a labels engine without PyTorch, a C header, DeepStream's nvinfer."""
