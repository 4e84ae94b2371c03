"""Three ways to hold M = (I + SᵀS)⁻¹: dual (m × m), primal (d × d, for m ≥ d) and an orthonormal basis."""
