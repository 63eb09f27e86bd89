"""`python -m tools.gpu_check`: everything that needs a GPU, in one command."""
