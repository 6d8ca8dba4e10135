"""Text to tokens and back: the `tokenizers` library, chat templates, and text from tokens as they come.

    Tokenizer.from_folder(path)      a Hugging Face folder           folder.py
    Tokenizer.from_gguf(metadata)    the header of a GGUF file       gguf.py, sentencepiece.py, pre_tokenizer.py
    .encode / .decode                raw text                        tokenizer.py
    .encode_chat                     messages, by the template       chat_template.py, sandbox.py, escape.py
    .detokenizer().push / .finish    never half a character          detokenizer.py

A *control token* is a token that steers the model and is no text (`<|im_end|>`); raw text may contain them, what
people say in a chat may not.

Nothing in these files is believed: whatever a file holds gives a tokenizer or a `TokenizerError`. Building one takes
time linear in the vocabulary, but for sorting, and at most 32 bytes of Python objects for each of its bytes, and 1 MiB
(the library takes some 64 more); nothing is ever written to stdout.
"""

from outpace.tokenizer.detokenizer import Detokenizer, Spelling
from outpace.tokenizer.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Spelling", "Tokenizer"]
