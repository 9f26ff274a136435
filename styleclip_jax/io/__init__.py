"""Reading and writing files and text as arrays."""
