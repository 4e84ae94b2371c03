"""The window: the newest gradients, kept current step by step."""
