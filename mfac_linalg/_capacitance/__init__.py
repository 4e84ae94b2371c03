"""The m × m capacitance matrix A = I + S Sᵀ: its Cholesky factor, spectrum and updates. No array here is d-sized."""
