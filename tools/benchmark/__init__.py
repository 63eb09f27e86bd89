"""`python -m tools.benchmark`: the product against its budgets."""
