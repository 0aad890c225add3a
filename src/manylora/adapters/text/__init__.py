"""An adapter's text files: tokenizer, chat template and ends, held against those of the base."""
