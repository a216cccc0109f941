"""The peers in JAX and Flax, as a user would first write them."""
