"""The course of a completion: admission, preparation, submission, and the conversion of tokens into text."""
