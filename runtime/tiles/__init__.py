"""Large pictures: overlapping tiles of the engine's own size, and one view of the whole picture."""
