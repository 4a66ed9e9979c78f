"""Training on real data: experts and their trajectories."""
