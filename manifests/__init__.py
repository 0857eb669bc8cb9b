"""Which clips exist: data set definitions, and official annotations read into one table of clips."""
