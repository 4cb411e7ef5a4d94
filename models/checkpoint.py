"""Checkpoints: named tensors and a little text in one safetensors file."""
