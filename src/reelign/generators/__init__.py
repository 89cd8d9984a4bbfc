"""Video generators behind one contract."""
