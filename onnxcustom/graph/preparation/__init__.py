"""A user's model made trainable, once: the passes, and what no kernel may be given."""
