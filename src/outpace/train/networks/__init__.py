"""The drafter networks in PyTorch: the mathematics of `outpace.models`, with gradients."""
