"""Quantise, measure, choose: the plan for this model on this box."""
