"""Child processes for work that a damaged or hostile file can crash, hang or fill the memory with."""
