"""Between words or pixels and their ids, and the file in which a tokenizer is kept."""
