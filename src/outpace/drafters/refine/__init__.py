"""Non-autoregressive decoding: a block of tokens is guessed at once, then refined pass by pass.

`Refiner` takes its part in the loop where plain decoding has a draft and a verifier: it lays out a canvas of masks, and
after each pass decides which of them become tokens. Its own text is the output then, which is lossy. `RefinedDraft` is
the same as a drafter: the target verifies the block, so the output is plain decoding's.
"""
