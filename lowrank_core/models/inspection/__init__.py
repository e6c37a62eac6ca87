"""Reports of what is in adapters and checkpoints."""
