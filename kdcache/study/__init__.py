"""Studies: many runs as data, launched together, and laid out beside the paper's figures."""
