"""What agent and hub agree on: wire, releases, trust, sketches, blobs, settings, the design system."""
