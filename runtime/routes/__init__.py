"""How an engine's output becomes labels: merged on the host, merged on the GPU, or labelled in the graph."""
