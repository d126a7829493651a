"""How sharp the loss is around a student: measured for a run, on record, and set beside the scores."""
