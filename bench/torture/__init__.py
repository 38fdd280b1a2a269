"""Hand-overs between real endpoints under every fault at once: what is served is right, and nothing is left behind."""
