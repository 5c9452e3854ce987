"""What a user imports to run a model."""
