"""Methods of the systems on sentences."""
