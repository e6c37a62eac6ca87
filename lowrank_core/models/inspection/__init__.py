"""Reports of what adapters and checkpoints hold."""
