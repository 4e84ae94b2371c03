"""Two ways to hold M = (I + SᵀS)⁻¹: by the m × m dual system, or for m ≥ d by the d × d matrix itself."""
