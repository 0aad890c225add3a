"""Each base model of the catalog as a tiny one with its features, against transformers and PEFT."""
