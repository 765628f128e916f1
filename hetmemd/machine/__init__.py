"""What memory the machine has: nodes, tiers, distances, bandwidth, and the weights computed from them."""
