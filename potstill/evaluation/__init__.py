"""How good a set is: protocols, fresh networks, intervals."""
