"""Outlook attention as Triton kernels behind custom operators."""
