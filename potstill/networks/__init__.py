"""Networks: architectures, their layers, and a network as a function of one vector."""
