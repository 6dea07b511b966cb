"""How the batch axis of a model is found, freed and proven: nodes run on rows alone and on rows together."""
