"""Prediction over many files, folders and videos."""
