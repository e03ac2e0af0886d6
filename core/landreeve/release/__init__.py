"""A model release: an OCI artifact in the CNCF ModelPack layout."""
