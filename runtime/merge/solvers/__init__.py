"""From aggregated attention to proposals: one module per solver. `runtime.merge.registry` lists them."""
