"""Files: tensors of safetensors files, checkpoints, and outputs that appear whole or not at all."""
