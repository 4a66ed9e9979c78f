"""Any labelled images as arrays, and the distilled set."""
