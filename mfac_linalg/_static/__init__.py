"""The static inverses: gradients that are collected once."""
