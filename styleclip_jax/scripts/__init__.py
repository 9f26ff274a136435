"""The command lines: flags in, files out."""
