"""Two checkpoints of one model: which weights of them are one layer, and what else changed."""
