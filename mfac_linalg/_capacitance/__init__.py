"""The m × m capacitance matrix A = I + S Sᵀ: its factor, its spectrum, its updates. It knows nothing of d."""
