"""The criterion: losses of matched masks."""
