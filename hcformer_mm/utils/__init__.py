"""Config look-up, atomic file writing and random inputs."""
