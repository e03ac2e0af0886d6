"""What a model is made of: features, recipes, evaluation, packing."""
