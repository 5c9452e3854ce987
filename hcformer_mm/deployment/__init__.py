"""Export to ONNX and torch.export, and verification of what was exported."""
