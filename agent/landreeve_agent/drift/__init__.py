"""Windows of sketches against the baseline; quality from late labels."""
