"""Training of the embedded default: images, captions, training and evaluation."""
