"""From a recipe to a trained checkpoint: build, train, evaluate, adapt."""
