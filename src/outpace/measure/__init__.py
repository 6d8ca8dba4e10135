"""Measuring a model on this machine: what decoding costs, whether its text is unchanged, and how it came about.

`bench` compares strategies with plain decoding, `certify` proves that their text is the same, `explain` shows one
generation as a web page. They share `prompts`, `quality`, `scoring`, `provenance` and files that the user names
(`output_file`, `text_files`), and do not know each other.
"""
