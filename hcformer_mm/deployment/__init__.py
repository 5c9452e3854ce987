"""Export to ONNX and torch.export, and verification of exported files."""
