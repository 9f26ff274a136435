"""Converts official PyTorch weights to checkpoint directories, without PyTorch."""
