"""Checking and browsing the files of a data set."""
