"""Exact changes of scale: powers of two, and the metric of the damping."""
