"""Findings from many runs side by side, one file a study."""
