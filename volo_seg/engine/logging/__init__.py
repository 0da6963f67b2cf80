"""The console, the run record and visualization backends."""
