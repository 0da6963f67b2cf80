"""Exact resizing algebra used by the head, the loss and the labels."""
