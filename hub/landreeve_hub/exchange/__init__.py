"""Releases to and from others: tar files, OCI image layouts, OCI registries, ModelPack artifacts of other tools."""
