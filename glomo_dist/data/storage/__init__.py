"""Files wherever they lie: found, opened, read to their end, and as lines or rows, with errors that name the file."""
