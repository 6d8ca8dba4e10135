"""Medusa-2 (arXiv:2401.10774, section 2.2.2): heads, and an adapter of their target, learned together."""
