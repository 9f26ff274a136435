"""Methods that find, edit and learn latents: inversion, optimization, mappers, directions."""
