"""Decoding: one engine per loaded model, its scheduler, its one loop, and how a draft is verified."""
