"""Official PyTorch weights -> this project's checkpoint directories, without PyTorch."""
