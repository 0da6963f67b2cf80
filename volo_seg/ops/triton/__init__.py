"""The Triton kernels of outlook attention; imported on use."""
