"""What a task is, and how the files of published sets become its examples."""
