"""Samples and labels in, with consent and retention."""
