"""A study: what its tables ask for, the small records its runs leave, and the tables, figures and sentences made of these."""
