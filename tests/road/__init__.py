"""A package, so that its tests share one stack and no others keep it running."""
