"""What leaves the house: model files, ONNX graphs, and the predictor that runs them."""
