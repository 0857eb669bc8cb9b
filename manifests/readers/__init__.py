"""One reader per data set: from its official annotation files to a manifest."""
