"""`make gpu`: everything that wants a GPU, proven and measured in one command; see __main__.py."""
