"""Import annotations of other formats as the folders that ``FolderDataset`` reads: one module a format."""
