"""Scripts, also installed as commands: flags in, files out."""
