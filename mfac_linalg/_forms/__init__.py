"""Three forms of M = (I + SᵀS)⁻¹: dual (an m × m system), primal (d × d, for m ≥ d), and block-diagonal."""
