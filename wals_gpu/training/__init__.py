"""A fit: its loop, validation, checkpoints, and the memory it takes."""
