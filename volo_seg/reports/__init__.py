"""The logs, scores and images of a run as a table, as plots and as one HTML page. Imports no torch."""
