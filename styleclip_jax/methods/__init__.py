"""Methods that edit latents: optimization and mappers, and the training of mappers."""
