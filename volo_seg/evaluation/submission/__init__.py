"""Archives for the test servers of Cityscapes and ADE20K."""
