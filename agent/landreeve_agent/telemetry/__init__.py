"""Counters, latencies and the facts that carry them."""
