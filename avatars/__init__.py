"""The recipe that made the embedded default: pictures, captions, training, and measurements."""
