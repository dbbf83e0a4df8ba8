"""Raw files to typed records to token ids: one file per format."""
