"""Model files: adapters, checkpoints, and what is said of them."""
