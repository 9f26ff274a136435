"""What changes latents: optimization, mappers, and what trains them."""
