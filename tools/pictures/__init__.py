"""The pictures of the READMEs, and the programs that draw them."""
