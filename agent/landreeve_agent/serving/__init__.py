"""The worker: server, batcher, session, capture; and its supervision."""
