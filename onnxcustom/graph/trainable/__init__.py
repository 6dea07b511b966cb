"""Weights of a model: which there are, which a user means, new values for them."""
