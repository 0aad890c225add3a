"""An adapter's text files (tokenizer, chat template, end tokens), compared with those of the base."""
