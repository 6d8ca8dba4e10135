"""Array arithmetic behind one protocol: `reference` (NumPy), `native` (C++)."""
