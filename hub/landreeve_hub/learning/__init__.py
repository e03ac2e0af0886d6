"""When to retrain, and what to do with the challenger."""
