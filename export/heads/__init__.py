"""What an engine gives: a registry of heads, and one module per head."""
