"""Teach an autoregressive model to say several tokens at once: masked blocks (diffusion), or fixed points (jacobi)."""
