"""One file per family: fit and export to ONNX."""
