"""One module per inference library; `runtime.engine` picks."""
