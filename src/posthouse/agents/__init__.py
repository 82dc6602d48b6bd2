"""The agent loop: specs, prompts, the pure decision and the loop around it."""
