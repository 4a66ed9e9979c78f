"""Records as figures and pages."""
