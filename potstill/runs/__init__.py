"""A run on disk: settings, the outer loop, stages, records."""
