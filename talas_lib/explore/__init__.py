"""What notebook 08 shows: views of a run, the controls around them, and small drawings."""
