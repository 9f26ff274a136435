"""Files and text to arrays and back."""
