"""Smaller models from larger ones: a student that begins as a part of its teacher and learns the teacher's words.

The student is an ordinary model afterwards (`folder`, `gguf_file`), to use alone or as a draft model.
"""
