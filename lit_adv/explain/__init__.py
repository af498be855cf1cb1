"""Pure functions from (model, images) to maps; what they need of a network they find by themselves. Empty so far."""
