"""One iteration of each method, ours against its authors' own public code."""
