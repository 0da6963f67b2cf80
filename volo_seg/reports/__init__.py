"""Reading what a run left behind, and drawing it: sheets of images, plots, one page. Without torch."""
