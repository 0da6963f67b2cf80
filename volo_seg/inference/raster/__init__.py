"""Prediction on images larger than memory."""
