"""One page about finished evaluations, which opens anywhere and asks nothing of a network."""
