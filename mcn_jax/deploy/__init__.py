"""Writes and reads model files, exports ONNX graphs, and predicts with trained networks."""
