"""Data sets: folders of one's own (``folders``) and the generated Toyscapes (``toyscapes``), which needs no mmseg."""
