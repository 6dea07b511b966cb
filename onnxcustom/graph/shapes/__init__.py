"""Shape inference around onnx's, and which axis of a tensor holds the rows."""
