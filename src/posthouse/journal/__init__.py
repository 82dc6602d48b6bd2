"""Step keys, outcomes and waits: what makes replay safe."""
