"""The embedded world: data, tokenizer, tiny model and gold scorer that need no download."""
