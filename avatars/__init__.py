"""Training and evaluation of the models of avatars that ship with the package."""
