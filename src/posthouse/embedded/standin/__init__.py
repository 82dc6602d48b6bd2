"""The stand-in model: an OpenAI-compatible server that is no language model."""
