"""A trained model in the forms that people use: as torch runs it, and as graphs that need no torch."""
