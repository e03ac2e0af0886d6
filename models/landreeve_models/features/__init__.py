"""Rows to tensors; the same code trains and serves."""
