"""What heads share: mask decoding, post-processing, recording of clusters."""
