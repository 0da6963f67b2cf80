"""Segmentors, sliding windows and lazy logits."""
