"""A trained model: building it, export, complexity, pictures."""
