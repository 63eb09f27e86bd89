"""From aggregated attention to proposals: one module per solver. `runtime.pyramid.solvers` lists them."""
